"""Small networks as .onnx files, made without torch, with every pattern that deploy fuses."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Appends nodes; tensors are named by their node."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name: str, array) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def integers(self, name: str, array) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array, np.int64), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, name: str, o: int, i: int, k: int = 1, zero_blocks: float = 0, n: int = 4, bias=True, **a):
        w = self.rng.standard_normal((o, i, k, k)) / np.sqrt(i * k * k)
        if zero_blocks:
            rows = -(-o // n)
            kept = self.rng.permutation(rows * i) >= int(zero_blocks * rows * i)
            w *= np.repeat(kept.reshape(rows, i), n, axis=0)[:o, :, None, None]
        inputs = [x, self.constant(f"{name}.weight", w)]
        if bias:
            inputs.append(self.constant(f"{name}.bias", self.rng.standard_normal(o) * 0.1))
        pads = a.pop("pads", [k // 2] * 4)
        return self.node("Conv", inputs, name, pads=pads, **a)

    def save(self, path: Path, output: str, shape=(1, 3, 32, 32), out_shape=None, batch: str | None = None) -> Path:
        shape = (batch, *shape[1:]) if batch else shape
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return path


def mobile(path: Path, zero_blocks: float = 0.5, batch: str | None = None, n: int = 4) -> Path:
    """Stem with batch norm, depthwise, 1xN 1x1 and 3x3 layers, a residual, squeeze-excite, pooling, a classifier."""
    b = Builder()
    x = b.conv("input", "stem", 16, 3, 3, strides=[2, 2], bias=False)
    stats = [b.constant(f"bn.{k}", b.rng.uniform(0.5, 1.5, 16)) for k in ("gamma", "beta", "mean", "var")]
    x = b.node("BatchNormalization", [x, *stats], "bn")
    low, high = b.constant("low", 0), b.constant("high", 6)
    x = skip = b.node("Clip", [x, low, high], "stem.relu6")
    x = b.conv(x, "expand", 32, 16, zero_blocks=zero_blocks, n=n)
    x = b.node("HardSwish", [x], "expand.act")
    x = b.conv(x, "depthwise", 32, 1, 3, group=32)
    x = b.node("Relu", [x], "depthwise.act")
    s = b.node("GlobalAveragePool", [x], "se.pool")
    s = b.node("Relu", [b.conv(s, "se.reduce", 8, 32)], "se.relu")
    s = b.node("HardSigmoid", [b.conv(s, "se.expand", 32, 8)], "se.gate", alpha=1 / 6, beta=0.5)
    x = b.node("Mul", [x, s], "se.scale")
    x = b.conv(x, "project", 16, 32, zero_blocks=zero_blocks, n=n)
    x = b.node("Add", [x, skip], "sum")
    x = b.conv(x, "spatial", 22, 16, 3, strides=[2, 2], zero_blocks=zero_blocks, n=n)
    x = b.node("Mul", [x, b.node("Sigmoid", [x], "silu.gate")], "silu")
    x = b.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = b.node("GlobalAveragePool", [x], "gap")
    x = b.node("Flatten", [x], "flat")
    w = b.constant("classifier.weight", b.rng.standard_normal((10, 22)))
    x = b.node("Gemm", [x, w, b.constant("classifier.bias", b.rng.standard_normal(10))], "classifier", transB=1)
    return b.save(path, x, out_shape=(batch, 10) if batch else (1, 10), batch=batch)
