"""Ways to spoil an ONNX model: its structure, sizes, types and attributes; and models that ask for much memory."""

import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Random = random.Random
NUMBERS = [0, -1, 1, 2, 3, 7, 100, 65536, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63)]
OPERATORS = [
    "Conv",
    "Relu",
    "Gemm",
    "MatMul",
    "Add",
    "Clip",
    "Reshape",
    "Resize",
    "NonZero",
    "Loop",
    "If",
    "Nope",
    "Pad",
]
OPERATORS += ["Layer", "QuantizeLinear", "Constant", "Concat", "Transpose", "BatchNormalization", "MaxPool", "Softmax"]


def spoiled(model: onnx.ModelProto, r: Random) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        r.choice(WAYS)(made, r)
    return made


def _node(m: onnx.ModelProto, r: Random) -> onnx.NodeProto:
    return r.choice(m.graph.node) if m.graph.node else m.graph.node.add()


def _attribute(m: onnx.ModelProto, r: Random) -> None:
    """Strides of 0, pads without end, lists that are too short or too long."""
    nodes = [n for n in m.graph.node if n.attribute] or [_node(m, r)]
    a = r.choice(r.choice(nodes).attribute or [onnx.AttributeProto()])
    if a.ints:
        what = r.random()
        if what < 0.5:
            a.ints[r.randrange(len(a.ints))] = r.choice(NUMBERS)
        elif what < 0.75:
            del a.ints[r.randrange(len(a.ints)) :]
        else:
            a.ints.append(r.choice(NUMBERS))
    elif a.type == onnx.AttributeProto.INT:
        a.i = r.choice(NUMBERS)
    elif a.type == onnx.AttributeProto.FLOAT:
        a.f = r.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])
    else:
        a.type = r.choice([0, 1, 2, 3, 4, 5, 6, 7])


def _new_attribute(m: onnx.ModelProto, r: Random) -> None:
    name = r.choice(
        ["strides", "pads", "dilations", "kernel_shape", "group", "axis", "auto_pad", "perm", "to", "ceil_mode"]
    )
    node = _node(m, r)
    for i, a in enumerate(node.attribute):
        if a.name == name:
            del node.attribute[i]
            break
    value = r.choice(
        [0, [0, 0], [1], [2**40, 1], [1, 1, 1], [-1, -1], [10**9] * 4, b"SAME_UPPER", b"x", -7, [3, 3, 3, 3]]
    )
    node.attribute.append(helper.make_attribute(name, value))


def _operator(m: onnx.ModelProto, r: Random) -> None:
    node = _node(m, r)
    node.op_type = r.choice(OPERATORS)
    if r.random() < 0.3:
        node.domain = r.choice(["kerf", "com.microsoft", "x", "ai.onnx.ml"])
        if r.random() < 0.7:
            m.opset_import.append(helper.make_opsetid(node.domain, 1))


def _wires(m: onnx.ModelProto, r: Random) -> None:
    node = _node(m, r)
    names = (
        [n for other in m.graph.node for n in other.output] + [t.name for t in m.graph.initializer] + ["", "nowhere"]
    )
    what = r.random()
    if what < 0.3 and node.input:
        node.input[r.randrange(len(node.input))] = r.choice(names)
    elif what < 0.5 and node.input:
        del node.input[r.randrange(len(node.input)) :]
    elif what < 0.6:
        node.input.append(r.choice(names))
    elif what < 0.8 and node.output:
        node.output[0] = r.choice(names)
    else:
        del node.output[:]


def _tensor(m: onnx.ModelProto, r: Random) -> None:
    """Weights and biases of other shapes, types and lengths."""
    if not m.graph.initializer:
        return
    t = r.choice(m.graph.initializer)
    what = r.random()
    if what < 0.25:
        t.data_type = r.choice([0, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99, -1])
    elif what < 0.5 and t.dims:
        t.dims[r.randrange(len(t.dims))] = r.choice(NUMBERS)
    elif what < 0.6:
        del t.dims[:]
    elif what < 0.7:
        t.raw_data = t.raw_data[: r.randrange(len(t.raw_data) + 1)]
    elif what < 0.9 and t.data_type == TensorProto.FLOAT and t.raw_data:
        array = np.zeros([max(1, d + r.choice([-1, 0, 1])) for d in t.dims if d < 10**5], np.float32)
        t.CopyFrom(numpy_helper.from_array(array, t.name))
    else:
        t.data_location = TensorProto.EXTERNAL
        place = r.choice(["x.bin", "/etc/passwd", "../x", "fifo", "/dev/zero", "model.onnx"])
        for key, value in (
            ("location", place),
            ("offset", r.choice(["0", "x", "-5"])),
            ("length", str(r.choice(NUMBERS))),
        ):
            t.external_data.add(key=key, value=value)


def _ends(m: onnx.ModelProto, r: Random) -> None:
    values = [*m.graph.input, *m.graph.output]
    if not values:
        return
    v = r.choice(values)
    what = r.random()
    if what < 0.3:
        v.type.tensor_type.elem_type = r.choice([0, 1, 6, 7, 8, 9, 10, 16, 99, -1])
    elif what < 0.6 and v.type.tensor_type.shape.dim:
        r.choice(v.type.tensor_type.shape.dim).dim_value = r.choice(NUMBERS)
    elif what < 0.7:
        v.type.Clear()
    elif what < 0.8 and m.graph.initializer:
        m.graph.output[0].name = m.graph.initializer[0].name
    elif what < 0.9:
        v.name = r.choice(["", "input", "[bold]x", "\x1b[31m", "a\nb"])
    else:
        del (m.graph.input if r.random() < 0.5 else m.graph.output)[:]


def _nodes(m: onnx.ModelProto, r: Random) -> None:
    """One gone, twice, or elsewhere."""
    if not m.graph.node:
        return
    i, what = r.randrange(len(m.graph.node)), r.random()
    if what < 0.3:
        del m.graph.node[i]
    elif what < 0.6:
        m.graph.node.append(m.graph.node[i])
    else:
        nodes = list(m.graph.node)
        r.shuffle(nodes)
        copied = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del m.graph.node[:]
        m.graph.node.extend(copied)


def _versions(m: onnx.ModelProto, r: Random) -> None:
    what = r.random()
    if what < 0.4:
        m.ir_version = r.choice([0, 1, 3, 99, -1, 2**62])
    elif what < 0.8 and m.opset_import:
        m.opset_import[0].version = r.choice([0, 1, 5, 6, 7, 9, 11, 13, 21, 99, -1, 2**62])
    else:
        del m.opset_import[:]


def _names(m: onnx.ModelProto, r: Random) -> None:
    _node(m, r).name = r.choice(["", "[bold]x[/]", "[/]", "\x1b]0;x\x07", "a\nb", "\u202eabc", "x" * 5000, "<b>", "é"])


def _bomb(m: onnx.ModelProto, r: Random) -> None:
    """Few bytes that ask for many: folded, or computed."""
    many = r.choice([2**20, 2**31, 2**40, 10**12])
    out = "bomb"
    stored = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in {"b0": 0, "b1": 1, "bn": many}.items()]
    side = int(many**0.5)
    stored.append(numpy_helper.from_array(np.array([side, side], np.int64), "bs"))
    stored.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "bo"))
    m.graph.initializer.extend(stored)
    node = {
        "Range": lambda: helper.make_node("Range", ["b0", "bn", "b1"], [out]),
        "Tile": lambda: helper.make_node("Tile", ["bo", "bs"], [out]),
        "Expand": lambda: helper.make_node("Expand", ["bo", "bs"], [out]),
        "ConstantOfShape": lambda: helper.make_node("ConstantOfShape", ["bs"], [out]),
    }[r.choice(["Range", "Tile", "Expand", "ConstantOfShape"])]()
    m.graph.node.insert(0, node)
    m.graph.node.append(helper.make_node("ReduceSum", [out], ["bombed"], keepdims=0))
    if r.random() < 0.7:
        kind = TensorProto.INT64 if node.op_type == "Range" else TensorProto.FLOAT
        m.graph.output.append(helper.make_tensor_value_info("bombed", kind, []))


def _functions(m: onnx.ModelProto, r: Random) -> None:
    """A function that calls itself, or deep branches."""
    if r.random() < 0.5:
        body = [helper.make_node("F", ["x"], ["y"], domain="own")]
        m.functions.append(helper.make_function("own", "F", ["x"], ["y"], body, [helper.make_opsetid("own", 1)]))
        m.opset_import.append(helper.make_opsetid("own", 1))
        _node(m, r).domain = "own"
        _node(m, r).op_type = "F"
        return
    graph = helper.make_graph([helper.make_node("Identity", ["q"], ["z"])], "g", [], [onnx.ValueInfoProto(name="z")])
    for _ in range(r.choice([3, 30])):
        node = helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="z")])
        if graph.ByteSize() > 10**6:
            break
    m.graph.node.extend(graph.node)


WAYS = (
    *(_attribute, _attribute, _new_attribute, _operator, _wires, _wires, _tensor, _tensor, _ends, _ends, _nodes),
    *(_versions, _names, _bomb, _functions),
)
