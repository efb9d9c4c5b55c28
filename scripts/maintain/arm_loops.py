"""What the inner loops of ARM kernels are made of: a table of instructions, loads and cycles by static estimate.

Launch:    python scripts/maintain/arm_loops.py [--targets rpi5 graviton3] [--mca llvm-mca-19]
Hardware:  any; a minute. llvm-mca (Debian: llvm-19) for cycles; without it they are left out.
Expected:  at most 1.35 instructions for each that multiplies, of 1×4 blocks at 50 %.

An fmla does four multiply-accumulates, an sdot sixteen: the least a loop can have is one of them and nothing else.
Cycles are llvm-mca's for endless turns of the loop with all loads in the first-level cache, by LLVM's scheduling model
of the CPU, or of a relative's (MODELS; LLVM's own for cortex-a72 is the Cortex-A57's, for apple-m1 Cyclone's): an
estimate, nothing measured.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace

from tvm.target import Target

from kerf.deploy.compiler import targets
from kerf.kernels.backends import CPU
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.kernel import candidates
from kerf.kernels.lowering import compile_func
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import TensorType

SAME = (1, 1, 1, 1)
SHAPES = {  # of MobileNet-V2 and ResNet-50
    "1×1 16→96 112²": (1, 16, 112, 112, 96),
    "1×1 24→144 56²": (1, 24, 56, 56, 144),
    "1×1 96→576 14²": (1, 96, 14, 14, 576),
    "1×1 320→1280 7²": (1, 320, 7, 7, 1280),
    "1×1 64→256 56²": (1, 64, 56, 56, 256),
    "1×1 1024→256 14²": (1, 1024, 14, 14, 256),
    "3×3 64→64 56²": (1, 64, 56, 56, 64, (3, 3), (1, 1), SAME),
    "3×3 256→256 14²": (1, 256, 14, 14, 256, (3, 3), (1, 1), SAME),
}
U8, I8 = TensorType("u8", 1.0, 0), TensorType("i8", axis=0)
MACS = {"fmla": 4, "sdot": 16}
LOADS = ("ldr", "ldp", "ldur", "ld1", "ldpsw", "ldrsw", "ldrb", "ldrh")
MODELS = {  # LLVM has none of its own of the Cortex-A76, which the Neoverse N1 is the server's version of
    "cortex-a72": "cortex-a72",
    "cortex-a76": "neoverse-n1",
    "neoverse-n1": "neoverse-n1",
    "neoverse-v1": "neoverse-v1",
    "apple-m1": "apple-m1",
}


HEAD = """\
| layer | numbers | target | loop: products, instructions, loads | instructions / product | loads / MAC | MAC / cycle |
|-|-|-|-|-|-|-|"""


@dataclass(frozen=True)
class Loop:
    instructions: tuple[str, ...]

    def count(self, *names: str) -> int:
        return sum(line.split()[0].partition(".")[0] in names for line in self.instructions)

    @property
    def products(self) -> int:
        return self.count(*MACS)

    @property
    def macs(self) -> int:
        return sum(MACS[name] * self.count(name) for name in MACS)


def loops(assembly: str) -> list[Loop]:
    """Innermost loops, a label and the branch back to it with neither label nor branch between, that multiply."""
    found, label, body = [], "", []
    for line in (text.strip() for text in assembly.splitlines()):
        if re.match(r"\.?LBB\w+:", line):
            label, body = line.partition(":")[0], []
        elif line and line[0] not in ".#/;" and not line.endswith(":"):
            body.append(re.split("//|;", line)[0].strip())
            if line.startswith("b"):
                if line.split()[-1] == label:
                    found.append(Loop(tuple(body)))
                label = ""
    return [loop for loop in found if loop.products]


def problem(shape: tuple, integers: bool) -> Problem:
    numbers = {"x": U8, "w": I8, "y": U8} if integers else {}
    p = Problem(*shape, n=4, **numbers)
    return replace(p, nnzb=-(-p.out_channels // 4) * p.in_channels // 2)


def hottest(p: Problem, target: Target) -> tuple[str, Loop]:
    """(kernel, its loop with the most products): others sum what is left over at the edges."""
    kernel = next(c.kernel for c in candidates(CPU.kernels, p, target) if c.problem.n)
    config = kernel.configs(p, target)[0]
    code = compile_func(kernel.prim_func(p, config, target), target).inspect_source("asm")
    return kernel.name, max(loops(code), key=lambda loop: loop.products)


def cycles(loop: Loop, mca: str, target: Target) -> float | None:
    """A turn of the loop, by llvm-mca; None where it is not there or knows no such CPU."""
    if not shutil.which(mca):
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write("\n".join(line for line in loop.instructions if not line.startswith("b")) + "\n")
        file.flush()
        command = [
            mca,
            f"-mtriple={targets.triple(target)}",
            f"-mcpu={MODELS[str(target.attrs['mcpu'])]}",
            "-iterations=200",
            file.name,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(total[1]) / 200 if total else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(targets.NAMED), choices=list(targets.NAMED))
    parser.add_argument("--mca", default="llvm-mca", help="LLVM's machine code analyser, of version 17 or later")
    args = parser.parse_args()
    print(HEAD)
    for name in args.targets:
        target = targets.parse(name, 1)
        for shape, sizes in SHAPES.items():
            for integers in (False, True)[: 1 + ("dotprod" in machine_of(target).features)]:
                _, loop = hottest(problem(sizes, integers), target)
                took = cycles(loop, args.mca, target)
                print(row(shape, "int8" if integers else "f32", name, loop, took), flush=True)
    return 0


def row(shape: str, numbers: str, target: str, loop: Loop, took: float | None) -> str:
    loads = loop.count(*LOADS)
    parts = f"{loop.products}, {len(loop.instructions)}, {loads}"
    ratio, each = len(loop.instructions) / loop.products, loads / loop.macs
    rate = f"{loop.macs / took:.1f}" if took else ""
    return f"| {shape} | {numbers} | {target} | {parts} | {ratio:.2f} | {each:.3f} | {rate} |"


if __name__ == "__main__":
    raise SystemExit(main())
