"""What the CUDA compiler made of every GPU kernel: registers, spills, shared memory, tensor-core instructions.

Launch:    python scripts/gpu/gpu_resources.py [--arch sm_80 sm_86 sm_89 sm_90]
Hardware:  no GPU; cuobjdump of a CUDA toolkit or of triton's package. Two seconds a kernel.
Expected:  no kernel spills; HMMA where tensor cores are claimed, LDGSTS where copies are asynchronous. A table.
"""

from __future__ import annotations

import argparse

from tvm.target import Target

from kerf.kernels.cuda import compiler
from kerf.kernels.cuda.host.resources import cases, usage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=compiler.ARCHITECTURES, choices=compiler.ARCHITECTURES)
    args = parser.parse_args()
    names = ("kernel", "images", "precision", "GPU", "threads", "registers", "spilled", "shared, KB")
    print(f"| {' | '.join([*names, 'HMMA', 'LDSM', 'LDGSTS', 'FFMA'])} |")
    print("|-" * 12 + "|")
    for arch in args.arch:
        target = Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})
        for kernel, p, c in cases(target):
            u = usage(kernel, p, c, target)
            counts = " | ".join(str(u.instructions[name]) for name in ("HMMA", "LDSM", "LDGSTS", "FFMA"))
            sizes = f"{u.threads} | {u.registers} | {u.spilled} | {u.shared / 1024:.0f}"
            print(f"| {kernel.name} | {p.batch} | {p.precision} | {arch} | {sizes} | {counts} |", flush=True)
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_resources", main))
