"""Random convolutional networks as ONNX files, seeded: operators, sizes, broadcasts, branches, several outputs.

Every one is accepted by onnx.checker; its numbers stay near 1, so that errors are not lost in large outputs. What it
takes and gives is in the file. ``network(seed)`` is the same for the same seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F = TensorProto.FLOAT
SIMPLE = ("Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Softplus", "Mish", "Abs", "Neg")
Shape = tuple[int, ...]


@dataclass
class Draft:
    """A graph in the making; ``images``: name -> (batch, channels, height, width), the latest last."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    images: dict[str, Shape] = field(default_factory=dict)

    def one_of(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def constant(self, array, kind=np.float32) -> str:
        name = f"k{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array, kind), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes) -> list[str]:
        place = len(self.nodes)
        names = [f"t{place}" if i == 0 else f"t{place}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"{op}_{place}", **attributes))
        return names

    def image(self, op: str, inputs: list[str], shape: Shape, **attributes) -> None:
        (name,) = self.node(op, inputs, **attributes)
        self.images[name] = shape


def convolution(d: Draft, x: str) -> None:
    """Any kernel, stride, dilation, padding, groups; a third are 1xN sparse, a few without bias, half normalised."""
    n, i, h, w = d.images[x]
    groups = d.one_of(1, 1, 1, i, *(g for g in (2, 4) if i % g == 0))
    o = groups * int(d.rng.integers(1, 5)) if groups > 1 else int(d.one_of(1, 3, 4, 8, 10, 16))
    kernel, dilation = (int(d.one_of(1, 1, 3, 3, 5)), int(d.one_of(1, 3))), int(d.one_of(1, 1, 1, 2))
    stride = [int(s) for s in d.rng.choice([1, 1, 2], 2)]
    reach = [(k - 1) * dilation + 1 for k in kernel]
    pads = [int(d.rng.integers(0, r)) for r in (*reach, *reach)]
    sizes = [(s + pads[a] + pads[a + 2] - reach[a]) // stride[a] + 1 for a, s in enumerate((h, w))]
    if min(sizes) < 1 or n * o * sizes[0] * sizes[1] > 2**15:
        return
    weight = d.rng.standard_normal((o, i // groups, *kernel)) / np.sqrt(i / groups * kernel[0] * kernel[1])
    if groups == 1 and o % 4 == 0 and d.rng.random() < 0.4:
        weight *= np.repeat(d.rng.random((o // 4, i)) < 0.5, 4, axis=0)[:, :, None, None]
    inputs = [x, d.constant(weight)]
    if d.rng.random() < 0.7:
        inputs.append(d.constant(d.rng.standard_normal(o) * 0.1))
    a = dict(kernel_shape=list(kernel), strides=stride, dilations=[dilation] * 2, pads=pads, group=groups)
    d.image("Conv", inputs, (n, o, *sizes), **a)
    if d.rng.random() < 0.5:
        stats = [d.constant(d.rng.uniform(0.5, 1.5, o)) for _ in range(4)]
        d.image("BatchNormalization", [next(reversed(d.images)), *stats], (n, o, *sizes))


def activation(d: Draft, x: str) -> None:
    shape = d.images[x]
    form = d.one_of(*SIMPLE, "Clip", "PRelu", "silu")
    if form == "Clip":
        d.image("Clip", [x, d.constant(d.one_of(0, -1)), d.constant(d.one_of(1, 6))], shape)
    elif form == "PRelu":
        d.image("PRelu", [x, d.constant(d.rng.uniform(0, 0.5, d.one_of((shape[1], 1, 1), (1, 1, 1))))], shape)
    elif form == "silu":
        d.image("Mul", [x, d.node("Sigmoid", [x])[0]], shape)
    else:
        d.image(form, [x], shape)


def sum_or_product(d: Draft, x: str) -> None:
    """Of two images that broadcast, or an image and a constant of any shape that does."""
    shape, op = d.images[x], d.one_of("Add", "Add", "Mul", "Sub", "Max", "Min")
    others = [y for y, s in d.images.items() if all(a == b or b == 1 for a, b in zip(shape, s))]
    if d.rng.random() < 0.6:
        other = d.one_of(*others)
    else:
        full = [int(s) if d.rng.random() < 0.5 else 1 for s in shape]
        other = d.constant(d.rng.uniform(-1, 1, full[int(d.rng.integers(0, 5)) :]))
    pair = [x, other] if d.rng.random() < 0.5 else [other, x]
    d.image(op, pair, shape)


def pooling(d: Draft, x: str) -> None:
    n, c, h, w = d.images[x]
    if d.rng.random() < 0.3:
        d.image("GlobalAveragePool", [x], (n, c, 1, 1))
        return
    k, s = int(d.one_of(2, 3)), int(d.one_of(1, 2))
    if min(h, w) < k:
        return
    a = dict(kernel_shape=[k, k], strides=[s, s])
    if d.rng.random() < 0.3:
        shape = (n, c, -(-h // s), -(-w // s))
        d.image("MaxPool", [x], shape, **a, auto_pad=d.one_of("SAME_UPPER", "SAME_LOWER"))
        return
    pad = int(d.rng.integers(0, 2))
    shape = (n, c, *((size + 2 * pad - k) // s + 1 for size in (h, w)))
    if d.rng.random() < 0.5:
        d.image("MaxPool", [x], shape, **a, pads=[pad] * 4)
    else:
        d.image("AveragePool", [x], shape, **a, pads=[pad] * 4, count_include_pad=int(d.rng.integers(0, 2)))


def channels(d: Draft, x: str) -> None:
    """Joined with another image, split, sliced, shuffled or gathered."""
    n, c, h, w = d.images[x]
    form = d.one_of("Concat", "Split", "Slice", "shuffle", "Gather")
    if form == "Concat":
        fitting = [(y, s) for y, s in d.images.items() if (s[0], *s[2:]) == (n, h, w)]
        other, shape = fitting[d.rng.integers(len(fitting))]
        d.image("Concat", [x, other], (n, c + shape[1], h, w), axis=1)
    elif form == "Split" and c > 1:
        first = int(d.rng.integers(1, c))
        parts = d.node("Split", [x, d.constant([first, c - first], np.int64)], 2, axis=1)
        d.images.update(zip(parts, ((n, first, h, w), (n, c - first, h, w))))
    elif form == "Slice" and h > 1:
        ends = [d.constant([v], np.int64) for v in (0, h, 2, 2)]
        d.image("Slice", [x, ends[0], ends[1], ends[2], ends[3]], (n, c, -(-h // 2), w))
    elif form == "shuffle" and c % 2 == 0:
        (wide,) = d.node("Reshape", [x, d.constant([n, 2, c // 2, h, w], np.int64)])
        (turned,) = d.node("Transpose", [wide], perm=[0, 2, 1, 3, 4])
        d.image("Reshape", [turned, d.constant([n, c, h, w], np.int64)], (n, c, h, w))
    elif form == "Gather":
        places = d.rng.integers(0, c, int(d.rng.integers(1, 6)))
        d.image("Gather", [x, d.constant(places, np.int64)], (n, len(places), h, w), axis=1)


def resizing(d: Draft, x: str) -> None:
    n, c, h, w = d.images[x]
    if n * c * h * w > 2**13:
        return
    form = d.one_of("nearest", "linear", "Pad", "ConvTranspose")
    if form == "Pad":
        pads = [0, 0, 1, 0, 0, 0, 2, 1]
        d.image("Pad", [x, d.constant(pads, np.int64)], (n, c, h + 3, w + 1), mode=d.one_of("constant", "edge"))
    elif form == "ConvTranspose":
        weight = d.constant(d.rng.standard_normal((c, 4, 2, 2)) / np.sqrt(c))
        d.image("ConvTranspose", [x, weight], (n, 4, 2 * h, 2 * w), strides=[2, 2])
    else:
        mode = d.one_of("half_pixel", "asymmetric") if form == "linear" else "asymmetric"
        a = dict(mode=form, coordinate_transformation_mode=mode, nearest_mode="floor")
        d.image("Resize", [x, "", d.constant([1, 1, 2, 2])], (n, c, 2 * h, 2 * w), **a)


def squeeze_and_excite(d: Draft, x: str) -> None:
    n, c, h, w = d.images[x]
    (mean,) = d.node("ReduceMean", [x, d.constant([2, 3], np.int64)], keepdims=1)
    less = max(c // 2, 1)
    (small,) = d.node("Conv", [mean, d.constant(d.rng.standard_normal((less, c, 1, 1)) / np.sqrt(c))])
    (inner,) = d.node("Relu", [small])
    (gate,) = d.node("Conv", [inner, d.constant(d.rng.standard_normal((c, less, 1, 1)) / np.sqrt(less))])
    d.image("Mul", [x, d.node("Sigmoid", [gate])[0]], (n, c, h, w))


STEPS: tuple[Callable[[Draft, str], None], ...] = (
    *(convolution,) * 4,
    *(activation,) * 3,
    *(sum_or_product, pooling, channels, resizing, squeeze_and_excite),
)


def classifier(d: Draft, x: str) -> str:
    """Rows of a dense layer, or the places of the largest ones."""
    c = d.images[x][1]
    (pooled,) = d.node("GlobalAveragePool", [x])
    (flat,) = d.node("Flatten", [pooled])
    weight, bias = d.rng.standard_normal((c, 5)) / np.sqrt(c), d.constant(d.rng.standard_normal(5))
    if d.rng.random() < 0.5:
        (rows,) = d.node("Gemm", [flat, d.constant(weight.T), bias], transB=1)
    else:
        (rows,) = d.node("Add", [d.node("MatMul", [flat, d.constant(weight)])[0], bias])
    form = d.one_of("none", "Softmax", "ArgMax")
    return rows if form == "none" else d.node(form, [rows], axis=1)[0]


def network(seed: int, steps: int = 14) -> onnx.ModelProto:
    """A network of one or two inputs and one to three outputs, opset 18; fixed sizes, at least one convolution."""
    d = Draft(np.random.default_rng(seed))
    batch, size = int(d.one_of(1, 1, 2)), (int(d.rng.integers(6, 20)), int(d.rng.integers(6, 20)))
    inputs = {"x": (batch, int(d.one_of(1, 3, 4)), *size)}
    if d.rng.random() < 0.25:
        inputs["z"] = (batch, int(d.one_of(1, 2)), *size)
    d.images.update(inputs)
    while not any(n.op_type == "Conv" for n in d.nodes):
        convolution(d, "x")
    for _ in range(steps):
        recent = list(d.images)[-4:]
        d.one_of(*STEPS)(d, d.one_of(*recent, recent[-1]))
    outputs = [next(reversed(d.images))]
    if d.rng.random() < 0.4:
        outputs.append(d.one_of(*(name for name in d.images if name not in (*inputs, *outputs)), *outputs))
    if d.rng.random() < 0.5:
        outputs.append(classifier(d, outputs[0]))
    return assembled(d, inputs, list(dict.fromkeys(outputs)))


def assembled(d: Draft, inputs: dict[str, Shape], outputs: list[str]) -> onnx.ModelProto:
    """What the outputs need; types and shapes of outputs as ONNX infers them."""
    needed, nodes = set(outputs), []
    for node in reversed(d.nodes):
        if not needed.isdisjoint(node.output):
            nodes.insert(0, node)
            needed |= set(node.input)
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info(name, F, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [t for t in d.stored if t.name in needed],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model
