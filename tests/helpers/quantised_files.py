"""Small networks quantised by ONNX Runtime's own tool, with random images to calibrate on."""

import logging
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.helpers.onnx_networks import Builder, mobile

KINDS = {"u8": QuantType.QUInt8, "i8": QuantType.QInt8}
FORMATS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}


class Images(CalibrationDataReader):
    def __init__(self, path: Path, count: int = 4):
        rng = np.random.default_rng(0)
        inputs = onnx.load(str(path)).graph.input
        sizes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in inputs}
        self._feeds = iter(
            [{n: rng.standard_normal(s).astype(np.float32) for n, s in sizes.items()} for _ in range(count)]
        )

    def get_next(self):
        return next(self._feeds, None)


def quantised(path: Path, to: Path, form="qdq", activations="u8", weights="i8", per_channel=True, **extra) -> Path:
    """The network at ``path``, in integers, at ``to``."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises to simplify the network first
    try:
        quantize_static(
            str(path), str(to), Images(path), FORMATS[form], per_channel=per_channel,
            activation_type=KINDS[activations], weight_type=KINDS[weights], extra_options=extra,
        )  # fmt: skip
    finally:
        logging.getLogger().setLevel(level)
    return to


def residual(path: Path, zero_blocks: float = 0.5) -> Path:
    """Stem, max pooling, two blocks with a sum, one of them strided, mean, classifier: a ResNet's parts."""
    b = Builder()
    x = b.node("Relu", [b.conv("input", "stem", 16, 3, 3, strides=[2, 2])], "stem.relu")
    x = skip = b.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for i, stride in enumerate((1, 2)):
        o = 16 * stride
        y = b.conv(x, f"a{i}", o, 16, 3, zero_blocks=zero_blocks, strides=[stride] * 2)
        y = b.conv(b.node("Relu", [y], f"a{i}.relu"), f"b{i}", o, o, 3, zero_blocks=zero_blocks)
        skip = b.conv(x, f"down{i}", o, 16, strides=[stride] * 2) if stride > 1 else skip
        x = skip = b.node("Relu", [b.node("Add", [y, skip], f"sum{i}")], f"out{i}")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "gap")], "flat")
    w = b.constant("fc.weight", b.rng.standard_normal((10, 32)) / 6)
    x = b.node("Gemm", [x, w, b.constant("fc.bias", b.rng.standard_normal(10))], "fc", transB=1)
    return b.save(path, x, out_shape=(1, 10))


def joined(path: Path) -> Path:
    """Branches joined, channels shuffled, split and sliced, an image enlarged, averages of windows."""
    b = Builder()
    x = b.node("Relu", [b.conv("input", "stem", 8, 3, 3)], "stem.relu")
    left = b.node("Relu", [b.conv(x, "left", 8, 8)], "left.relu")
    right = b.node("Sigmoid", [b.conv(x, "right", 4, 8, 3)], "right.gate")
    x = b.node("Concat", [left, right], "cat", axis=1)
    x = b.node("Reshape", [x, b.integers("five", [1, 2, 6, 32, 32])], "groups")
    x = b.node("Transpose", [x], "turned", perm=[0, 2, 1, 3, 4])
    x = b.node("Reshape", [x, b.integers("four", [1, 12, 32, 32])], "shuffled")
    x = b.node("AveragePool", [x], "average", kernel_shape=[2, 2], strides=[2, 2])
    b.nodes.append(onnx.helper.make_node("Split", [x, b.integers("halves", [6, 6])], ["p", "q"], "split", axis=1))
    low = b.node("MaxPool", [b.conv("p", "low", 6, 6)], "low.pool", kernel_shape=[2, 2], strides=[2, 2])
    scales = b.constant("scales", [1, 1, 2, 2])
    how = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    up = b.node("Resize", [low, "", scales], "up", **how)
    x = b.node("Mul", [up, "q"], "product")
    x = b.node("HardSwish", [b.conv(x, "last", 8, 6, 3)], "last.act")
    return b.save(path, x, out_shape=(1, 8, 16, 16))


NETWORKS = {"residual": residual, "mobile": mobile, "joined": joined}
