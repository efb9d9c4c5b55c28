"""What computes a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tvm
from tvm.target import Target

from deploy.passes.fuse_layers import Layer
from kernels import BY_NAME
from kernels.bsr import BSR
from kernels.kernel import Config
from kernels.problem import Problem


@dataclass(frozen=True)
class Choice:
    """A kernel, its configuration, and the problem it solves for the layer."""

    problem: Problem  # the layer's own, or its dense twin
    kernel: str
    config: Config

    @cached_property
    def key(self) -> tuple:
        """Hashable; but for the problem what Record.what is."""
        return self.problem.to_json(), self.kernel, tuple(sorted(self.config.items()))

    def pack(self, layer: Layer) -> dict[str, np.ndarray]:
        weight = BSR.from_conv(layer.weight, self.problem.block) if self.problem.block else layer.weight
        return BY_NAME[self.kernel].pack(self.problem, weight, self.config)

    def prim_func(self, target: Target) -> tvm.tirx.PrimFunc:
        return BY_NAME[self.kernel].prim_func(self.problem, self.config, target)
