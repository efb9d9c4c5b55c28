"""Stores the layers of a checkpoint whose kernels are patterns (pconv) as FKW, reads them back and compares.

Launch:    python scripts/pack_patterns.py CHECKPOINT FILE
Hardware:  any, seconds.
Expected:  two lines on what is stored; layers that would be no smaller are left out.
"""

import argparse
import sys
from pathlib import Path

import torch

from kerf.compress.methods import fkw
from kerf.compress.training import checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="CHECKPOINT")
    parser.add_argument("file", type=Path, metavar="FILE")
    a = parser.parse_args()
    try:
        print(packed(a.source, a.file))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def packed(source: Path, file: Path) -> str:
    """Writes the file, reads it back, and says what is in it. Raises ValueError or OSError for what has no patterns."""
    layers, dense, wanted = {}, 0, {}
    for name, weight in checkpoint.read_weights(source).items():
        if weight.ndim != 4 or not bool(weight.any()) or bool((weight != 0).all()):
            continue
        kernels = fkw.pack(weight)
        size = weight.numel() * weight.element_size()
        if kernels.bytes < size:
            layers[name], wanted[name], dense = kernels, weight, dense + size
    if not layers:
        raise ValueError(f"{source} has no layer of patterned kernels: prune it by pconv")
    fkw.save(file, layers)
    if not all(torch.equal(fkw.unpack(p), wanted[name]) for name, p in fkw.load(file).items()):
        raise AssertionError(f"{file} does not hold the weights of {source}")
    loads = [
        fkw.row_loads(p.patterns[k], int(p.shape[3]), 2)
        for p in layers.values()
        for k, n in enumerate(p.stride.diff(dim=1).sum(0).tolist())
        for _ in range(n)
    ]
    each, once = (sum(column) for column in zip(*loads))
    size = sum(p.bytes for p in layers.values())
    stored = f"{len(layers)} layers: {dense:,} bytes dense, {size:,} in FKW ({dense / size:.2f}x less), read back equal"
    return f"{stored}\nfor two output rows kernels read {each:,} input rows, {once:,} if no row is read twice"


if __name__ == "__main__":
    raise SystemExit(main())
