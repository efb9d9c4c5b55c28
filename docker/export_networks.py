"""The zoo's dense networks as .onnx files, for images without torch: random weights, calibrated batch norms.

Launch:    python docker/export_networks.py FOLDER [ARCH ...]
Hardware:  one CPU core, two minutes for the five networks.
Expected:  FOLDER/ARCH.onnx, input (1, 3, 224, 224), each compared with torch in ONNX Runtime before it is written.
"""

import argparse
from pathlib import Path

import torch

from kerf.compress.models import create
from kerf.deploy.export import export
from kerf.zoo import ARCHS, CLASSES, SIZE, calibrate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("archs", nargs="*", default=ARCHS, metavar="ARCH", help=f"by default {', '.join(ARCHS)}")
    args = parser.parse_args()
    for arch in args.archs:
        torch.manual_seed(0)
        model = create(arch, CLASSES, SIZE).eval()
        calibrate(model, torch.randn(4, 3, SIZE, SIZE))
        print(export(model, torch.zeros(1, 3, SIZE, SIZE), args.folder / f"{arch}.onnx"), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
