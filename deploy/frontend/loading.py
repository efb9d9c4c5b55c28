"""An .onnx file as a checked model of plain form: dense constants, no functions, at least the operators of opset 13.

What has no plain form stays as it is: ONNX Runtime runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes, subgraphs
from kerf.errors import BadInput

SCAN = 9  # opset: before, Scan went over each entry of a batch
RESIZE = 11  # opset: since then Resize says where pixels lie
OPSET = 13  # since then axes, bounds and the like are inputs, as they are today
MOST = 2**31 - 1  # bytes of a message that protobuf writes


def load(path: Path) -> onnx.ModelProto:
    """Raises FileNotFoundError, or BadInput for what is no valid model or keeps its data outside the file's folder."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; expected an .onnx model")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and the file system each raise their own kinds
        raise _unreadable(path, error) from error
    outside = next((place for place in _external(model.graph) if not _inside(place)), None)
    if outside is not None:
        raise BadInput(
            f"{path}: its data lie in {outside!r}, outside the file's folder; move them beside it, save again"
        )
    try:
        load_external_data_for_model(model, str(path.parent))
        _check(path, model)
    except Exception as error:  # the checker has its own kinds, too
        raise _unreadable(path, error) from error
    model = inlined(model)
    densify(model.graph)
    return modern(model)


def _check(path: Path, model: onnx.ModelProto) -> None:
    """By its path, as a large model would be serialised for it; but the checker takes no input or output of unknown
    rank, which ONNX Runtime does: there a shape is lent.
    """
    values = [v for v in (*model.graph.input, *model.graph.output) if v.type.WhichOneof("value") == "tensor_type"]
    bare = [v.type.tensor_type for v in values if not v.type.tensor_type.HasField("shape")]
    for kind in bare:
        kind.shape.SetInParent()
    onnx.checker.check_model(model if bare else str(path))
    for kind in bare:
        kind.ClearField("shape")


def _unreadable(path: Path, error: Exception) -> BadInput:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return BadInput(f"{path}: not a readable ONNX model ({lines[0]}); export it again")


def _external(graph: onnx.GraphProto) -> Iterator[str]:
    """Where constants lie that are not in the file itself."""
    tensors = [*graph.initializer, *(part for s in graph.sparse_initializer for part in (s.values, s.indices))]
    tensors += [t for n in graph.node for a in n.attribute for t in (a.t, *a.tensors)]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield from (entry.value for entry in tensor.external_data if entry.key == "location")
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _external(inner)


def _inside(place: str) -> bool:
    """Whether a path stays below the folder that it starts from, on any system."""
    if PurePosixPath(place).is_absolute() or PureWindowsPath(place).is_absolute() or PureWindowsPath(place).drive:
        return False
    return os.pardir not in PureWindowsPath(os.path.normpath(place)).parts


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the bodies of the file's own functions where they are called; as it is where it is too large for that."""
    if not model.functions or model.ByteSize() >= MOST:
        return model
    return onnx.inliner.inline_local_functions(model)


def densify(graph: onnx.GraphProto) -> None:
    """In place: sparse constants as dense ones, Constant nodes of the graph as its constants."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(dense(sparse, sparse.values.name))
    del graph.sparse_initializer[:]
    if not any(node.op_type == "Constant" for node in graph.node):
        return
    others = onnx.GraphProto()  # the nodes are the graph's own: this holds copies while it is emptied
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            graph.initializer.append(constant(node))
        else:
            others.node.append(node)
    del graph.node[:]
    graph.node.extend(others.node)


def dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """Indices are places in the flattened tensor, or a row of coordinates for each value."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), array.shape)
    array.reshape(-1)[places] = values
    return numpy_helper.from_array(array, name)


def constant(node: onnx.NodeProto) -> onnx.TensorProto:
    """The tensor of a Constant node, in any of its forms."""
    (attribute,), name = node.attribute, node.output[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "sparse_value":
        return dense(value, name)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = name
        return tensor
    if attribute.name.startswith("value_string"):
        strings, shape = ([value], []) if isinstance(value, bytes) else (list(value), [len(value)])
        return helper.make_tensor(name, onnx.TensorProto.STRING, shape, strings)
    return numpy_helper.from_array(np.asarray(value, np.float32 if "float" in attribute.name else np.int64), name)


def modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """Of opset 13 if it was older and ONNX can convert it, else as it is."""
    if all(o.version >= OPSET for o in model.opset_import if o.domain in STANDARD):
        return model
    old = Graph(model)
    if not old.nodes or any(_converted_wrongly(old, node) for node in old.nodes):
        return model
    try:
        new = onnx.version_converter.convert_version(old.light_model(), OPSET)
        if [o.name for o in new.graph.output] != [o.name for o in old.outputs]:
            return model
        _without_unknown_ranks(new.graph, old.outputs)
        onnx.checker.check_model(new)
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
