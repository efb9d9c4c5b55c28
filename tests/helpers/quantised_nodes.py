"""Q/DQ nodes for files written node by node (onnx_files): short names, and the numbers beside them."""

import numpy as np

from tests.helpers.onnx_files import node


class Drawn:
    """``nodes`` and ``constants`` of a file in the making."""

    def __init__(self, seed=0):
        self.nodes, self.constants, self.rng = [], {}, np.random.default_rng(seed)

    def add(self, op, inputs, output, **attributes):
        self.nodes.append(node(op, inputs, output, **attributes))
        return output.split()[0]

    def constant(self, name, array):
        self.constants[name] = np.asarray(array)
        return name

    def _numbers(self, name, scale, zero, dtype):
        scale = np.asarray(scale, np.float32)
        names = (
            self.constant(f"{name}.s", scale),
            self.constant(f"{name}.z", np.broadcast_to(zero, scale.shape).astype(dtype)),
        )
        return " ".join(names)

    def q(self, x, output, scale=0.05, zero=100, dtype="uint8", **attributes):
        return self.add("QuantizeLinear", f"{x} {self._numbers(output, scale, zero, dtype)}", output, **attributes)

    def dq(self, x, output, scale=0.05, zero=100, dtype="uint8", **attributes):
        return self.add("DequantizeLinear", f"{x} {self._numbers(output, scale, zero, dtype)}", output, **attributes)

    def pair(self, x, name, **numbers):
        """x quantised and made floats again."""
        return self.dq(self.q(x, f"{name}.q", **numbers), name, **numbers)

    def weight(self, name, shape, scale=0.01, zero=0, dtype="int8", **attributes):
        """DequantizeLinear of random integers."""
        low = {"int8": -127, "uint8": 1}[dtype]
        self.constant(f"{name}.q", self.rng.integers(low, low + 255, shape).astype(dtype))
        return self.dq(f"{name}.q", name, scale, zero, dtype, **attributes)
