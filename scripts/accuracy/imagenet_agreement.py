"""Does a bundle see the same photographs as torch? Top-1 of both, image by image, on an ImageNet folder.

Launch:    python scripts/accuracy/imagenet_agreement.py --data_path DIR [--arch NAME] [--pretrained_model FILE]
           DIR holds val/<wnid>/*.JPEG; --pretrained_model torchvision or a file takes trained weights.
Hardware:  2 CPU cores, about 5 minutes for 1,000 images.
Expected:  every image has the same top-1 class in torch and in the bundle.

Without weights, the network is trained on the photographs for two epochs: it classifies nothing well, but its classes
differ from image to image, so that agreement says something about the two programs.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import kerf.compress.cli
from kerf import console
from kerf.compress.data.sets import Options, open_data
from kerf.tune.cli import summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--arch", default="mobilenet_v2_x0_5")
    parser.add_argument("--pretrained_model")
    parser.add_argument("--job_dir", type=Path, default=Path("runs/imagenet_agreement"))
    args = parser.parse_args()
    data = open_data("imagenet", Options(args.data_path, eval_batch=50))

    common = ["--data_set=imagenet", f"--arch={args.arch}"]
    photos = [f"--data_path={args.data_path}"]
    prune = [
        "--conv_type=BlockL1Conv",
        "--N=4",
        "--rearrange",
        "--warmup_length=0",
        f"--job_dir={args.job_dir / 'pruned'}",
    ]
    if args.pretrained_model:
        source = [*photos, f"--pretrained_model={args.pretrained_model}", "--num_epochs=0"]
    else:
        source = [f"--data_path={trainable(args)}", "--num_epochs=2", "--train_batch_size=50", "--lr=0.1"]
    code = kerf.compress.cli.main([*common, *prune, *source])
    if code:
        return code
    pruned = args.job_dir / "pruned" / "checkpoint" / "best.safetensors"
    evaluate = [f"--evaluate={pruned}", "--export_onnx", f"--job_dir={args.job_dir / 'evaluated'}"]
    code = kerf.compress.cli.main([*common, *photos, "--conv_type=DenseConv", *evaluate])
    onnx, bundle = args.job_dir / "evaluated" / "model.onnx", args.job_dir / "model.kerf"
    code = code or console.guarded(
        "imagenet_agreement", lambda: print(summary(kerf.compile(onnx, bundle, trials=0, seconds=5, say=print)))
    )
    if code:
        return code
    torchs = json.loads((args.job_dir / "evaluated" / "predictions.json").read_text())
    session = kerf.load(bundle)
    ours = [int(session.run(x[None].numpy()).argmax()) for images, _ in data.test.epoch(0, 0) for x in images]
    same = sum(torchs[name] == top1 for name, top1 in zip(data.test.names, ours, strict=True))
    print(f"top-1 of bundle and torch agree on {same} of {len(ours)} images, {len(np.unique(ours))} different classes")
    return 0 if same == len(ours) else 1


def trainable(args) -> Path:
    """The photographs as a data set whose training part is its validation part."""
    folder = args.job_dir / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        (folder / part).unlink(missing_ok=True)
        (folder / part).symlink_to((args.data_path / "val").resolve())
    return folder


if __name__ == "__main__":
    raise SystemExit(console.ended("imagenet_agreement", main))
