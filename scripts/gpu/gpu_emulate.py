"""A network as a GPU would run it, on the CPU: every function's CUDA source through g++, against ONNX Runtime.

Launch:    python scripts/gpu/gpu_emulate.py NETWORK.onnx --bsr 32 [--arch sm_90] [--precision f16] [--batch 1]
Hardware:  no GPU, no CUDA compiler; g++. ResNet-50 at 224x224 takes a minute or two.
Expected:  the largest difference from ONNX Runtime's output, which f16 rounds to some 0.03 of the largest output in
           networks of random weights, tf32 to 0.003; exit code 1 above what `model_tune.py` accepts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import choose
from kerf.deploy.compiler.lower import lower
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import verify
from kerf.errors import Mismatch
from kerf.kernels.cuda.host import cuda_on_host
from kerf.kernels.cuda.host.emulate import emulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx_path", type=Path)
    parser.add_argument("--bsr", type=int, default=32)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--precision", default="f16", choices=("f32", "tf32", "f16"))
    parser.add_argument("--batch", type=int)
    args = parser.parse_args()
    if reason := cuda_on_host.missing():
        parser.error(reason)
    try:
        target = targets.parse(f"cuda -arch={args.arch}", 1)
        network = convert(args.onnx_path, args.bsr, args.sparsity, args.batch, args.precision)
        choices = {n: choose(x.problem, target, RecordBook(None), None) for n, x in network.layers.items()}
        module, packed = lower(network, choices, {}, target)
        sparse = sum(c.problem.n > 0 for c in choices.values())
        print(f"{args.onnx_path}: {len(choices)} layers, {sparse} block-sparse", flush=True)
        with tempfile.TemporaryDirectory(prefix="kerf-emulate-") as folder:
            found = verify(
                lambda x: emulate(module, packed, x, target, Path(folder)),
                args.onnx_path, network.inputs, count=1, precision=args.precision,
            )  # fmt: skip
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except Mismatch as error:
        print(error, file=sys.stderr)
        return 1
    print(f"largest difference from ONNX Runtime {found['max_relative_error']:.1e} of the largest output")
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_emulate", main))
