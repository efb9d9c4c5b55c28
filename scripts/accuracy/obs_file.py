"""What `kerf prune X.onnx` costs the ResNets in accuracy on CIFAR-10: no code, no labels, no training.

Launch:    python scripts/accuracy/obs_file.py --data_path DIR --pretrained_model resnet20-cifar10jpeg.safetensors
Hardware:  any CPU, minutes. Images of the training part calibrate, without labels; all 10,000 test images are measured.
Expected:  80 % of ResNet-20's 88.71 with 100 images and half of the blocks; integers cost some tenths of that.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import kerf
from kerf import temporary
from kerf.compress.data.batches import InMemory, normalise
from kerf.compress.data.sets import Options, open_data
from kerf.compress.models import create
from kerf.compress.training.checkpoint import load_weights

HELD_BACK = 5  # of so many one does not calibrate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--pretrained_model", type=Path, required=True)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1024], help="that calibrate")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--N", type=int, default=4)
    args = parser.parse_args()
    data = open_data("cifar10", Options(args.data_path))
    assert isinstance(data.train, InMemory)
    assert isinstance(data.test, InMemory)
    model = create(args.arch, data.num_classes, data.image_size)
    load_weights(model, args.pretrained_model)
    seen, tested, labels = data.train.pixels, normalise(data.test.pixels).numpy(), data.test.labels.numpy()
    with temporary.folder("obs") as folder:
        dense = Path(kerf.export(model.eval(), torch.zeros(1, *tested.shape[1:]), folder / "dense.onnx"))
        print(f"| {args.arch}, 1x{args.N} at {args.sparsity:.0%} | agreement | top-1 | s |\n|-|-|-|-|")
        print(f"| untouched | | {top1(dense, tested, labels):.2f} | |", flush=True)
        for images, rearrange, int8 in product(args.images, (False, True), (False, True)):
            samples, began = folder / "x.npy", time.monotonic()
            np.save(samples, normalise(seen[: images * HELD_BACK // (HELD_BACK - 1)]).numpy())
            made = kerf.prune_onnx(
                dense, folder / "pruned.onnx", samples, sparsity=args.sparsity, n=args.N, rearrange=rearrange,
                int8=int8, threads=1,
            )  # fmt: skip
            seconds = time.monotonic() - began
            name = ", ".join([f"{made.samples} images", *["rearranged"] * rearrange, *["int8"] * int8])
            hits = top1(made.path, tested, labels)
            print(f"| {name} | {100 * (made.agreement or 0):.1f} | {hits:.2f} | {seconds:.0f} |", flush=True)
    return 0


def top1(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    answers = [session.run(None, {name: image[None]})[0].argmax() for image in images]
    return 100 * float(np.mean(np.array(answers) == labels))


if __name__ == "__main__":
    raise SystemExit(main())
