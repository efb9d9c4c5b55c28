"""Files of old opsets, and with ONNX Runtime's own Q/DQ, in ONNX's operators of today."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper

from kerf.deploy.frontend.checker import check
from kerf.deploy.frontend.dense_constants import densify
from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes

SCAN = 9  # opset: before, Scan went over each entry of a batch
RESIZE = 11  # opset: since then Resize says where pixels lie
OPSET = 13  # since then axes, bounds and the like are inputs, as they are today
WIDE = 21  # opset: since then Q/DQ take integers of 4 and of 16 bits
BYTES = TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32


def standard_quantisers(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime's own Q/DQ (com.microsoft), which compute the same, as ONNX's: of bytes since opset 13, of 4 and 16
    bits since 21. Those of a file that cannot be converted stay.
    """
    if not any(map(_is_contributed, model.graph.node)):
        return model
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    grids = {name for node in filter(_is_contributed, model.graph.node) for name in _grid(node)}
    wide = any(kinds.get(name, TensorProto.UINT8) not in BYTES for name in grids)
    model, least = (modern(model, WIDE), WIDE) if wide else (model, OPSET)
    if next(o.version for o in model.opset_import if o.domain in STANDARD) >= least:
        for node in filter(_is_contributed, model.graph.node):
            node.domain = ""
    return model


def _is_contributed(node: onnx.NodeProto) -> bool:
    return node.domain == "com.microsoft" and node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _grid(node: onnx.NodeProto) -> Sequence[str]:
    """Constants that show of how many bits its integers are: what is dequantised, and the zero point."""
    return [*node.input[:1], *node.input[2:3]] if node.op_type == "DequantizeLinear" else node.input[2:3]


def modern(model: onnx.ModelProto, opset: int = OPSET) -> onnx.ModelProto:
    """Of this opset if it was older and ONNX can convert it, else as it is."""
    if all(o.version >= opset for o in model.opset_import if o.domain in STANDARD):
        return model
    old = Graph(model)
    if not old.nodes or any(_converted_wrongly(old, node) for node in old.nodes):
        return model
    try:
        new = onnx.version_converter.convert_version(old.light_model(), opset)
        if [o.name for o in new.graph.output] != [o.name for o in old.outputs]:
            return model
        _without_unknown_ranks(new.graph, old.outputs)
        check(new)
    except Exception:  # an operator without a converter; each has its own kind of error
        return model
    densify(new.graph)  # the converter writes Constant nodes
    if old.opset < RESIZE:
        _as_before(new.graph)
    large = set(old.large_constants())
    new.graph.initializer.extend(t for t in model.graph.initializer if t.name in large)
    del new.graph.input[:]
    new.graph.input.extend(old.inputs)
    del new.graph.output[:]
    new.graph.output.extend(old.outputs)
    return new


def _without_unknown_ranks(graph: onnx.GraphProto, outputs: Sequence[onnx.ValueInfoProto]) -> None:
    """In place: tensors of which inference knows no shape, as behind QLinearAdd of com.microsoft, and which the checker
    refuses. Outputs are described as in the file, others not at all.
    """
    for found, said in zip(graph.output, outputs, strict=True):
        if not found.type.tensor_type.HasField("shape"):
            found.CopyFrom(said)
    known = onnx.GraphProto(value_info=[v for v in graph.value_info if v.type.tensor_type.HasField("shape")])
    del graph.value_info[:]
    graph.value_info.extend(known.value_info)


def _converted_wrongly(old: Graph, node: onnx.NodeProto) -> bool:
    """What ONNX Runtime computes otherwise after ONNX's converter: tests/deploy/frontend/test_opsets.py has them all.

    Hardmax was over the flattened rest of its input; Scan had a batch; the nearest pixel of a smaller image was rounded
    up, and that of a larger one down.
    """
    if node.op_type != "Resize" or old.opset >= RESIZE or attributes(node).get("mode", b"nearest") != b"nearest":
        return node.op_type == "Hardmax" or (node.op_type == "Scan" and old.opset < SCAN)
    scales = old.constants.get(node.input[1])
    return scales is None or bool(np.any(scales < 1))


def _as_before(graph: onnx.GraphProto) -> None:
    """In place: pixels where Upsample and the first Resize had them; the converter leaves the new default."""
    for node in graph.node:
        if node.op_type == "Resize":
            mode = attributes(node).get("mode", b"nearest")
            del node.attribute[:]
            said = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in said.items())
