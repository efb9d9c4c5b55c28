"""What can be known before the network runs, computed by ONNX Runtime.

Given: operators of constants, Shape and Size of tensors of fixed shape.
Result: their constants. Every other node stays as it is, with its name. Quantised constants stay
quantised, and nothing is folded that would make the file much larger.

ONNX Runtime's own offline optimisation folds too, but writes HardSwish, Mish, GroupNormalization and other operators as
several, merges equal nodes and moves Transposes, also with these passes switched off; onnxscript's and onnxsim's are no
part of the deployment side. So ONNX Runtime computes here, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import SMALL, STANDARD, Graph, attributes, reads, subgraphs

CHANCE = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
KEPT = (*CHANCE, "Dropout", "QuantizeLinear", "DequantizeLinear")
# What makes of a few numbers as many as one of them says: folded once inference knows how many.
GROWING = ("ConstantOfShape", "Expand", "Loop", "OneHot", "Pad", "Range", "Resize", "Scan", "Tile", "Upsample")
LARGEST = 2**22  # elements of a constant that is larger than what it is made of


def fold_constants(graph: Graph) -> bool:
    """Once, in place, with the shapes that the graph knows; whether anything was found."""
    shapes = _note_shapes(graph)
    foldable = _foldable(graph)
    made = _evaluated(graph, foldable)
    for name, array in made.items():
        graph.note(name, array)
    gone = [node for node in foldable if all(name in graph.constants for name in node.output if name)]
    graph.remove([*shapes, *gone])
    return bool(shapes or gone)


def _note_shapes(graph: Graph) -> list[onnx.NodeProto]:
    """Shape and Size nodes whose results are now constants."""
    found = []
    for node in graph.nodes:
        shape = (
            graph.shapes.get(node.input[0]) if node.op_type in ("Shape", "Size") and node.domain in STANDARD else None
        )
        if shape is None or not all(isinstance(d, int) and d >= 0 for d in shape):
            continue
        a = attributes(node)
        sizes = shape[a.get("start", 0) : a.get("end")] if node.op_type == "Shape" else math.prod(shape)
        graph.note(node.output[0], np.array(sizes, np.int64))
        found.append(node)
    return found


def _foldable(graph: Graph) -> list[onnx.NodeProto]:
    known, found = set(graph.constants), []
    for node in graph.nodes:
        if reads(node) <= known and all(name not in known for name in node.output) and _may_fold(graph, node):
            found.append(node)
            known.update(node.output)
    return found


def _may_fold(graph: Graph, node: onnx.NodeProto) -> bool:
    if not _is_exact(node) or not all(graph.types.get(name) for name in node.output if name):
        return False
    if node.op_type in GROWING and any(graph.fixed_shape(name) is None for name in node.output if name):
        return False
    before = sum(math.prod(graph.fixed_shape(name) or (0,)) for name in node.input if name)
    after = sum(math.prod(graph.fixed_shape(name) or (0,)) for name in node.output if name)
    return after <= max(LARGEST, before)


def _is_exact(node: onnx.NodeProto) -> bool:
    """Whether it gives the same tensors each time, and is no step of a quantised network."""
    if node.domain not in STANDARD or node.op_type in KEPT or _is_training(node):
        return False
    return all(_is_exact(inner) for graph in subgraphs(node) for inner in graph.node)


def _is_training(node: onnx.NodeProto) -> bool:
    return any(a.name == "training_mode" and a.i for a in node.attribute)


def _evaluated(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> dict[str, np.ndarray]:
    """What other nodes read of what these make; of nodes that ONNX Runtime cannot run alone, nothing."""
    if not nodes:
        return {}
    try:
        return _run(graph, nodes, {})
    except Exception:  # its errors derive from Exception directly: some node has no code for its types, or is wrong
        made: dict[str, np.ndarray] = {}
    for node in nodes:
        if all(name in graph.constants or name in made for name in reads(node)):
            try:
                made |= _run(graph, [node], made)
            except Exception:  # this one: it stays in the graph, where running or lowering it says why
                continue
    return made


def _run(graph: Graph, nodes: Sequence[onnx.NodeProto], made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inside, ends = {id(node) for node in nodes}, {o.name for o in graph.outputs}
    wanted: list[str] = []
    for node in nodes:
        outputs = [name for name in node.output if name]
        if any(name in ends or any(id(r) not in inside for r in graph.consumers(name)) for name in outputs):
            wanted += outputs
    if not wanted:
        return {}
    model, feeds = _part(graph, nodes, wanted, made)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(wanted, feeds)))


def _part(
    graph: Graph, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str], made: dict[str, np.ndarray]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """These nodes as a model, and what to feed it: large constants, so that they are not serialised."""
    own = {name for node in nodes for name in node.output}
    inputs, feeds, stored = [], {}, []
    for name in sorted({name for node in nodes for name in reads(node)} - own):
        array = made[name] if name in made else graph.constants[name]
        if array.size > SMALL and array.dtype.kind in "fiub" and array.dtype.isbuiltin:
            feeds[name] = array
            inputs.append(helper.make_tensor_value_info(name, graph.types[name], array.shape))
        else:
            stored.append(numpy_helper.from_array(array, name) if name in made else graph.tensor(name))
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    body = helper.make_graph(nodes, "constants", inputs, outputs, stored)
    version = max(graph.original.ir_version, 10)  # older ones want constants among the inputs
    return helper.make_model(body, opset_imports=graph.original.opset_import, ir_version=version), feeds
