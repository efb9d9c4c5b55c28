"""The zoo's dense networks as .onnx files, for images without torch: random weights, calibrated batch norms.

Launch:    PYTHONPATH=. python docker/export_networks.py FOLDER [ARCH ...]
Hardware:  one CPU core, two minutes for the five networks.
Expected:  FOLDER/ARCH.onnx, input (1, 3, 224, 224), each compared with torch in ONNX Runtime before it is written.
"""

import sys
from pathlib import Path

import torch

from kerf.compress.models import create
from kerf.deploy.export import export
from kerf.zoo import CLASSES, SIZE, calibrate

ARCHS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet50")


def main(folder: str, *archs: str) -> int:
    for arch in archs or ARCHS:
        torch.manual_seed(0)
        model = create(arch, CLASSES, SIZE).eval()
        calibrate(model, SIZE)
        print(export(model, torch.zeros(1, 3, SIZE, SIZE), Path(folder) / f"{arch}.onnx"), flush=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("export_networks: error: no folder given; expected FOLDER [ARCH ...]", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(main(*sys.argv[1:]))
