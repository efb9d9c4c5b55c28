"""Every GPU kernel on shapes chosen to hurt: checked on a GPU (scripts/gpu) and on the host (tests)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvm.target import Target

from kerf.kernels.cuda import KERNELS
from kerf.kernels.cuda.host.problems import CHECKED, DENSITIES, weights
from kerf.kernels.kernel import candidates
from kerf.kernels.precision import types_of


@dataclass(frozen=True)
class Item:
    """A kernel to compile: ``group`` tells which are to be compared, ``count`` how often the network has the layer."""

    use: str  # "check" or "time"
    group: str
    kernel: str
    problem: str
    config: dict
    density: float
    count: int = 0
    densities: tuple[float, ...] = ()  # to be timed with, by the one function
    function: str = ""
    library: str = ""


def checks(target: Target) -> Iterator[Item]:
    """Every kernel that takes a shape, in every precision, with its first, middle and last configurations."""
    for name, shape in CHECKED.items():
        for precision in ("f32", "tf32", "f16"):
            for density in DENSITIES if shape.n else (1.0,):
                p, _, _ = weights(replace(shape, **types_of(precision)), density)
                for taker in candidates(KERNELS, p, target):
                    if p.n and not taker.problem.n:
                        continue  # its dense twin is a case of its own
                    found = taker.kernel.configs(taker.problem, target)
                    spread = [found[0], found[len(found) // 2], found[-1]] if density == 0.3 or not p.n else found[:1]
                    for c in {str(c): c for c in spread}.values():
                        group = f"{name} {precision} {density:g}"
                        yield Item("check", group, taker.kernel.name, taker.problem.to_json(), dict(c), density)
