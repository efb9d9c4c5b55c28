"""An .onnx file as a checked model of plain form: dense constants, no functions, at least the operators of opset 13.

What has no plain form stays as it is: ONNX Runtime runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx.inliner
from google.protobuf.message import Message
from onnx.external_data_helper import load_external_data_for_model

from kerf.deploy.frontend import soundness
from kerf.deploy.frontend.checker import check
from kerf.deploy.frontend.dense_constants import densify
from kerf.deploy.frontend.onnx_graph import reads, subgraphs
from kerf.deploy.frontend.opsets import modern, standard_quantisers
from kerf.errors import BadInput
from kerf.failures import printable
from kerf.gate import refuse_name, refuse_special

TEXTS = ("name", "doc_string", "external_data")  # of a tensor
MOST = 2**31 - 1  # bytes of a message that protobuf writes


def load(path: Path) -> onnx.ModelProto:
    """Raises FileNotFoundError, or BadInput for what is no valid model or keeps its data outside the file's folder."""
    refuse_name(path)
    refuse_special(path, "an .onnx model", MOST)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and the file system each raise their own kinds
        raise _unreadable(path, error) from error
    ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    if any(isinstance(name, bytes) for name in ends):
        raise BadInput(f"{path}: the name of an input or output is not UTF-8; export it again")
    mended = _escape(model) | without_unread_data(model.graph)
    outside = next((place for place in _external(model.graph) if not _inside(place)), None)
    if outside is not None:
        raise BadInput(
            f"{path}: its data lie in {outside!r}, outside the file's folder; move them beside it, save again"
        )
    for place in {*_external(model.graph)}:
        try:
            refuse_special(path.parent / place, "the data of an .onnx model")
        except FileNotFoundError as error:
            raise _unreadable(path, error) from error
    soundness.refuse(path, model)
    mended |= in_order(model.graph) | versioned(model)
    try:
        load_external_data_for_model(model, str(path.parent))
        check(model, None if mended else path)
    except Exception as error:  # the checker has its own kinds, too
        raise _unreadable(path, error) from error
    with soundness.explained(path):
        model = inlined(model)
        densify(model.graph)
        return standard_quantisers(modern(model))


def _unreadable(path: Path, error: Exception) -> BadInput:
    said = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
    return BadInput(f"{path}: not a readable ONNX model ({said:.300}); export it again")


def _escape(message: Message) -> bool:
    """In place: names and texts of other bytes than UTF-8's, which protobuf reads as bytes and does not write again,
    are spelt with backslashes, the same everywhere; whether there were any.
    """
    if isinstance(message, onnx.TensorProto):  # its numbers are many
        fields = [(field, getattr(message, field.name)) for field in message.DESCRIPTOR.fields if field.name in TEXTS]
    else:
        fields = message.ListFields()
    found = False
    for field, value in fields:
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                found |= _escape(part)
        elif field.type == field.TYPE_STRING and isinstance(value, bytes):
            setattr(message, field.name, value.decode(errors="backslashreplace"))
            found = True
        elif field.type == field.TYPE_STRING and not isinstance(value, str):
            for i, text in enumerate(value):
                if isinstance(text, bytes):
                    value[i] = text.decode(errors="backslashreplace")
                    found = True
    return found


def in_order(graph: onnx.GraphProto) -> bool:
    """In place: every node behind those that it reads, as ONNX asks and ONNX Runtime does not; whether one moved."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = {i: {maker[name] for name in reads(node) if name in maker} for i, node in enumerate(graph.node)}
    if all(other < i for i, others in needs.items() for other in others):
        return False
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        return False  # the checker says so
    nodes = onnx.GraphProto(node=[graph.node[i] for i in order])
    del graph.node[:]
    graph.node.extend(nodes.node)
    return True


def without_unread_data(graph: onnx.GraphProto) -> bool:
    """In place: constants in files of their own that nothing reads are gone, as ONNX Runtime never looks for those
    files; whether there were any.
    """
    read = {value.name for value in graph.output}.union(*(reads(node) for node in graph.node))
    elsewhere = onnx.TensorProto.EXTERNAL
    unread = [t for t in graph.initializer if t.data_location == elsewhere and t.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)
    return bool(unread)


def versioned(model: onnx.ModelProto) -> bool:
    """In place: a file that says an older version of ONNX's form than it has, which ONNX Runtime does not mind, says
    the first that has it; whether that was so.
    """
    inputs = {value.name for value in model.graph.input}
    least = 4 if any(t.name not in inputs for t in model.graph.initializer) else 3
    if model.ir_version >= least or not model.opset_import:
        return False
    model.ir_version = least
    return True


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
