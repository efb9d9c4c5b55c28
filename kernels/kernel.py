"""What a kernel is, and which kernels may compute a Problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import tvm
from tvm.target import Target

from kerf.errors import Unsupported
from kerf.kernels.config import Config
from kerf.kernels.problem import Problem


class Kernel(Protocol):
    """One way to compute a Problem. Named <op>_<layout>_<weight format>_<strategy>; a module of kernels/ is one."""

    name: str

    def refuses(self, p: Problem, target: Target) -> str | None:
        """None when the kernel can compute ``p``, else the reason why not."""

    def configs(self, p: Problem, target: Target) -> Sequence[Config]:
        """Configurations worth measuring; the first is good without tuning."""

    def pack(self, p: Problem, w: Any, c: Config) -> dict[str, np.ndarray]:
        """Weight arrays as the function takes them, in its order. ``w``: a BSR where ``p.n`` says so, else an array."""

    def prim_func(self, p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
        """Function (x, *packed weights, bias, [residual], y)."""


@runtime_checkable
class Estimated(Protocol):
    """A kernel that others of its kind are compared with before anything is measured."""

    def cycles(self, p: Problem, target: Target) -> float:
        """What it takes, by estimate, for ``p`` in its first configuration."""


@dataclass(frozen=True)
class Candidate:
    """A kernel and the Problem it would solve for a layer: the layer's own, or its dense twin."""

    kernel: Kernel
    problem: Problem


def dense_twin(p: Problem) -> Problem:
    """The same layer with its zeros stored."""
    return replace(p, n=0, nnzb=0)


def candidates(kernels: Sequence[Kernel], p: Problem, target: Target) -> Iterator[Candidate]:
    """Every kernel that takes ``p``, then, for a sparse ``p``, every kernel that takes its dense twin; those that
    estimate what they take in that order.
    """
    for problem in (p, dense_twin(p)) if p.n else (p,):
        found = [kernel for kernel in kernels if kernel.refuses(problem, target) is None]
        if len(found) > 1 and all(isinstance(kernel, Estimated) for kernel in found):
            found.sort(key=lambda kernel: cast(Estimated, kernel).cycles(problem, target))
        yield from (Candidate(kernel, problem) for kernel in found)


def pick(kernels: Sequence[Kernel], p: Problem, target: Target) -> Kernel:
    """The first kernel that takes exactly ``p``. Raises ValueError with every refusal when there is none."""
    reasons = []
    for kernel in kernels:
        reason = kernel.refuses(p, target)
        if reason is None:
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise Unsupported(f"no kernel for {p.describe()} (N = {p.n}): " + "; ".join(reasons))
