"""The networks that scripts/gpu/gpu_networks.py races: made, pruned, exported, and built where there is no GPU.

Launch:    python scripts/gpu/gpu_bundles.py FOLDER [--arch sm_90] [--only resnet50-1x32-0.75-b8 ...]
Hardware:  CPU, torch; some minutes a network, most of them for ONNX Runtime's outputs of 64 images.
Expected:  FOLDER/NAME.kerf for every network of the table in docs/benchmarks, ONNX Runtime's output beside each. Random
           weights: 1xN by block L1 with rearrangement (kerf.zoo).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gpu_networks

import kerf
from kerf.kernels.cuda.compiler import ARCHITECTURES
from kerf.zoo import network

NETWORKS = {  # architecture, N, share of zero blocks, batch
    f"{arch}-1x{n}-{share:g}-b{batch}": (arch, n, share, batch)
    for arch, n, share, batch in (
        ("resnet50", 32, 0.75, 64),
        ("resnet50", 32, 0.9, 64),
        ("resnet50", 32, 0.75, 8),
        ("resnet50", 32, 0.75, 1),
        ("mobilenet_v2", 16, 0.75, 64),
        ("mobilenet_v2", 16, 0.75, 1),
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="sm_90", choices=ARCHITECTURES)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    args = parser.parse_args()
    for name in args.only:
        arch, n, share, batch = NETWORKS[name]
        _, model = network(arch, n, share, args.folder, batch)
        out = args.folder / f"{name}.kerf"
        print(kerf.compile(model, out, n=n, target=f"cuda -arch={args.arch}", trials=0, say=print))
        gpu_networks.expect(model, out)
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_bundles", main))
