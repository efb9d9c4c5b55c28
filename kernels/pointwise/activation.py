"""Activation: what a layer does to each of its sums, with the numbers that it takes."""

from __future__ import annotations

import math
from typing import NamedTuple

from kerf.errors import BadInput

ACTIVATIONS = (
    *("none", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu"),
    *("clip", "leakyrelu", "elu", "gelu", "gelu_tanh", "mish", "tanh", "erf"),
)
# alpha and beta of those that take any: the slope, or the size, of negative numbers; the bounds
PARAMETERS = {"leakyrelu": 1, "elu": 1, "clip": 2}
LARGEST = 3.4028234663852886e38  # float32: a bound of a clip that has none


class Activation(NamedTuple):
    name: str = "none"
    alpha: float = 0.0
    beta: float = 0.0

    def check(self) -> None:
        """Raises BadInput for a name that there is not, and for numbers that it does not take."""
        if self.name not in ACTIVATIONS:
            raise BadInput(f"activation {self.name!r}; expected one of {', '.join(ACTIVATIONS)}")
        given = self.alpha, self.beta
        if not all(map(math.isfinite, given)) or any(given[PARAMETERS.get(self.name, 0) :]):
            takes = PARAMETERS.get(self.name, 0)
            raise BadInput(f"activation {self.name!r} with {given}; expected {takes or 'no'} finite numbers")
