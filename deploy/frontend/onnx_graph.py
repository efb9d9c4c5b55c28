"""An ONNX graph that passes can edit: constants as numpy arrays, shapes of every tensor, who consumes what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kerf.errors import BadInput


class Graph:
    """Nodes in topological order; ``constants``: name -> array; ``shapes``: name -> dims; one file's worth."""

    def __init__(self, model: onnx.ModelProto):
        self.original = model
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
        graph = inferred.graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Identity" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]]
            else:
                self.nodes.append(node)
        self.inputs = [i for i in graph.input if i.name not in self.constants]
        self.outputs = list(graph.output)
        self.shapes: dict[str, tuple[int | str, ...] | None] = {
            v.name: dims(v) for v in (*graph.input, *graph.value_info, *graph.output)
        }
        self.shapes.update({name: array.shape for name, array in self.constants.items()})
        values = (*graph.input, *graph.value_info, *graph.output)
        self.element_types = {v.name: v.type.tensor_type.elem_type for v in values}  # TensorProto's; not of constants

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Raises BadInput unless it is known, and fixed."""
        found = self.fixed_shape(tensor)
        if found is None:
            raise BadInput(f"{tensor!r} has no fixed shape; export the network with fixed sizes")
        return found

    def fixed_shape(self, tensor: str) -> tuple[int, ...] | None:
        """None when the shape is unknown or has a symbolic size."""
        found = self.shapes.get(tensor)
        if found is None:
            return None
        sizes = tuple(d for d in found if isinstance(d, int) and d > 0)
        return sizes if len(sizes) == len(found) else None

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        return [n for n in self.nodes if tensor in _reads(n)]

    def sole_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads ``tensor``, unless the tensor is also an output of the graph."""
        found = self.consumers(tensor)
        return found[0] if len(found) == 1 and tensor not in {o.name for o in self.outputs} else None

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((n for n in self.nodes if tensor in n.output), None)

    def replace(self, old: list[onnx.NodeProto], new: onnx.NodeProto) -> None:
        """Put ``new`` where the last of ``old`` stood: there all inputs of all of them exist."""
        at = max(self.nodes.index(n) for n in old)
        self.nodes[at] = new
        for node in old:
            if node in self.nodes and node is not new:
                self.nodes.remove(node)

    def model(self, extra_inputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The graph as a model, constants that are still read included."""
        read = {name for node in self.nodes for name in _reads(node)} | {o.name for o in self.outputs}
        constants = [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in read]
        graph = helper.make_graph(self.nodes, "kerf", [*self.inputs, *extra_inputs], self.outputs, constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("kerf", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node needs, those its branches and loop bodies capture included."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return set(node.input).union(*(_reads(inner) for graph in graphs for inner in graph.node))


def dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    """Shape of a value, a string for a symbolic size, None when unknown."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)


def called(node: onnx.NodeProto) -> str:
    """What a node is called, by its output where the file names none."""
    return node.name or node.output[0]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def write_fixed(path: Path, batch: int | None, to: Path) -> None:
    """The file with the shapes that ``read_model`` gives it: what dense engines are raced on, so that all know them."""
    onnx.save(read_model(path, batch), str(to))


def read_model(path: Path, batch: int | None) -> onnx.ModelProto:
    """A checked model with fixed shapes; a symbolic first size of an input becomes ``batch`` (1 when None).

    Raises FileNotFoundError, or ValueError for a file that is no valid model, has other symbolic sizes or NaN weights.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; expected an .onnx model")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system each raise their own kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{path}: not a readable ONNX model ({reason}); export it again") from error
    constants = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            raise BadInput(f"{path}: input {value.name!r} is {kind}; expected FLOAT (float32)")
        size = value.type.tensor_type.shape.dim
        if len(size) and not size[0].HasField("dim_value"):
            size[0].dim_value = batch or 1
        elif batch is not None and len(size) and size[0].dim_value != batch:
            raise BadInput(f"{path}: input {value.name!r} has batch {size[0].dim_value} fixed; asked for {batch}")
        if any(not isinstance(d, int) or d < 1 for d in dims(value) or ("?",)):
            raise BadInput(f"{path}: input {value.name!r} has shape {dims(value)}; export it with fixed sizes")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInput(f"{path}: weight {tensor.name!r} holds NaN or infinity; expected finite numbers")
    return model
