"""What computes a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from kerf.deploy.frontend.network import Layer
from kerf.kernels.backends import BY_NAME, backend_of
from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.int8 import conv2d_nchw_bytes_direct, numbers
from kerf.kernels.cpu.int8.dot import signed
from kerf.kernels.kernel import candidates
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Choice:
    """A kernel, its configuration, and the problem it solves for the layer."""

    problem: Problem  # the layer's own, or its dense twin
    kernel: str
    config: Config

    @cached_property
    def key(self) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
        """Hashable; but for the problem what Record.what is."""
        return self.problem.to_json(), self.kernel, tuple(sorted(self.config.items()))

    @property
    def numbers(self) -> str:
        """What products are of: of a layer of bytes "f32", too, where that is faster."""
        return "f32" if self.kernel == conv2d_nchw_bytes_direct.name else self.problem.numbers

    def pack(self, layer: Layer) -> dict[str, np.ndarray]:
        """What the kernel's function takes between the image and the residual, in order."""
        weight = BSR.from_conv(layer.weight, self.problem.n) if self.problem.n else layer.weight
        packed = BY_NAME[self.kernel].pack(self.problem, weight, self.config)
        if layer.weight_scale is None or not self.problem.x.quantised:
            return packed | {"bias": layer.bias.astype(np.float32)}
        given = self.problem, layer.weight, layer.bias, layer.weight_scale, layer.types
        return packed | numbers.arrays(*given, signed=signed(self.config))

    def prim_func(self, target: Target) -> tvm.tirx.PrimFunc:
        return BY_NAME[self.kernel].prim_func(self.problem, self.config, target)


def ways(p: Problem, target: Target) -> list[list[Choice]]:
    """Per kernel that takes the problem or its dense twin, its configurations, the likeliest first.

    The first of the first is what is built when nothing is known.
    """
    return [
        [Choice(c.problem, c.kernel.name, config) for config in c.kernel.configs(c.problem, target)]
        for c in candidates(backend_of(target).kernels, p, target)
    ]
