"""Does a bundle see the same photographs as torch? Top-1 of both, image by image, on an ImageNet folder.

Launch:    python scripts/imagenet_agreement.py --data_path DIR [--arch mobilenet_v2] [--pretrained_model FILE]
           DIR holds val/<wnid>/*.JPEG; --pretrained_model torchvision or a file takes trained weights.
Hardware:  2 CPU cores, about 3 minutes for 1,000 images.
Expected:  every image has the same top-1 class in torch and in the bundle.

Without weights, the network is drawn at random; after pruning its batch norm statistics and the mean of its logits are
set on the first images: its classes mean nothing, but they differ from image to image, so that agreement says something
about the two programs.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import compress.cli
import tune.cli
from compress import checkpoint
from compress.data import Options, open_data
from compress.models import create
from deploy import runtime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--pretrained_model")
    parser.add_argument("--job_dir", type=Path, default=Path("runs/imagenet_agreement"))
    args = parser.parse_args()
    data = open_data("imagenet", Options(args.data_path, eval_batch=50))
    weights = args.pretrained_model or args.job_dir / "random.safetensors"
    if not args.pretrained_model:
        torch.manual_seed(0)
        checkpoint.save(weights, create(args.arch, data.num_classes, data.image_size).state_dict())

    common = ["--data_set=imagenet", f"--data_path={args.data_path}", f"--arch={args.arch}"]
    prune = ["--conv_type=BlockL1Conv", "--N=4", "--rearrange", "--num_epochs=0", f"--pretrained_model={weights}"]
    code = compress.cli.main([*common, *prune, f"--job_dir={args.job_dir / 'pruned'}"])
    if code:
        return code
    pruned = args.job_dir / "pruned" / "checkpoint" / "best.safetensors"
    if not args.pretrained_model:
        pruned = calibrated(pruned, args, data)
    evaluate = [f"--evaluate={pruned}", "--export_onnx", f"--job_dir={args.job_dir / 'evaluated'}"]
    code = compress.cli.main([*common, "--conv_type=DenseConv", *evaluate])
    onnx, bundle = args.job_dir / "evaluated" / "model.onnx", args.job_dir / "model.kerf"
    code = code or tune.cli.main([f"--onnx_path={onnx}", "--trials=0", f"--out={bundle}", "--seconds=5"])
    if code:
        return code
    torchs = json.loads((args.job_dir / "evaluated" / "predictions.json").read_text())
    session = runtime.load(bundle)
    ours = [int(session.run(x[None].numpy()).argmax()) for images, _ in data.test.epoch(0, 0) for x in images]
    same = sum(torchs[name] == top1 for name, top1 in zip(data.test.names, ours, strict=True))
    print(f"top-1 of bundle and torch agree on {same} of {len(ours)} images, {len(np.unique(ours))} different classes")
    return 0 if same == len(ours) else 1


def calibrated(weights: Path, args, data) -> Path:
    model = create(args.arch, data.num_classes, data.image_size)
    checkpoint.load_weights(model, weights)
    images = torch.cat([x for _, (x, _) in zip(range(4), data.test.epoch(0, 0))])
    classifier = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        model.train()(images)
        for _ in range(20):  # running statistics move a tenth of the way each time
            model(images[torch.randperm(len(images))[:100]])
        classifier.bias -= model.eval()(images).mean(0)
    path = args.job_dir / "calibrated.safetensors"
    checkpoint.save(path, model.state_dict())
    return path


if __name__ == "__main__":
    raise SystemExit(main())
