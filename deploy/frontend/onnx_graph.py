"""An ONNX graph that passes can edit: constants as numpy arrays, shapes of every tensor, who consumes what."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kerf.errors import BadInput

STANDARD = ("", "ai.onnx")  # names of ONNX's own domain
OWN = "kerf"  # domain of kerf's operators
SMALL = 1024  # elements of a constant that inference may need to know: shapes, axes, scales


@dataclass(frozen=True)
class Value:
    """A tensor that a network takes or gives. dtype: numpy's name; a size of ``shape`` is None where the file leaves it
    open, ``shape`` itself where even the number of axes is. ``any_byte``: whether its integers are read as numbers of 8
    bits, never as indices, so that each may be any.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    any_byte: bool = False


class Graph:
    """Nodes in topological order; ``constants``: name -> array; ``shapes``: name -> dims; ``types``: name -> ONNX's
    number of the element type (0 for what is no tensor).

    ``nodes`` is a tuple: ``replace`` and ``set_nodes`` change it, and keep the index of who reads and who makes what.
    Shapes and types are those of the last ``infer``; ``inferred`` is the model that it saw.
    """

    def __init__(self, model: onnx.ModelProto):
        self.original = model
        self.opset = next((o.version for o in model.opset_import if o.domain in STANDARD), 1)
        self._stored = {t.name: t for t in model.graph.initializer}
        self._read = {name: array_of(tensor) for name, tensor in self._stored.items()}
        self.constants = dict(self._read)
        self.inputs = [i for i in model.graph.input if i.name not in self.constants]
        self.outputs = list({o.name: o for o in model.graph.output}.values())  # one may be listed twice
        self._listed: tuple[onnx.NodeProto, ...] | None = None
        self.is_rewritten = False  # whether a pass put other nodes of ONNX in the place of the file's
        self._originals: dict[str, tuple[onnx.NodeProto, ...]] = {}  # by output: what a pass made one node of
        self.set_nodes(model.graph.node)
        self.infer()

    @property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        if self._listed is None:
            self._listed = tuple(node for node in self._slots if node is not None)
        return self._listed

    def set_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """These, in topological order, instead of all that there are."""
        self._slots: list[onnx.NodeProto | None] = []
        self._at: dict[int, int] = {}  # id of a node -> its slot
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._producer: dict[str, onnx.NodeProto] = {}
        self._listed = None
        for node in nodes:
            self._slots.append(None)
            self._put(node, len(self._slots) - 1)

    def replace(
        self, old: Sequence[onnx.NodeProto], new: onnx.NodeProto, before: Sequence[onnx.NodeProto] = ()
    ) -> None:
        """Put ``new`` where the last of ``old`` stood: there all inputs of all of them exist. ``before``: nodes in
        front of them that it computes, too, but that stay, since others may read them.
        """
        self._originals[new.output[0]] = tuple(n for each in (*before, *old) for n in self.originals(each))
        slot = max(self._at[id(node)] for node in old)
        for node in old:
            self._take(node)
        self._put(new, slot)

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            self._take(node)

    def is_read(self, tensor: str) -> bool:
        """By a node; an output of the graph need not be."""
        return bool(self._readers.get(tensor))

    def _put(self, node: onnx.NodeProto, slot: int) -> None:
        self._slots[slot], self._at[id(node)], self._listed = node, slot, None
        for name in reads(node):
            self._readers.setdefault(name, []).append(node)
        self._producer.update({name: node for name in node.output if name})

    def _take(self, node: onnx.NodeProto) -> None:
        self._slots[self._at.pop(id(node))], self._listed = None, None
        for name in reads(node):
            readers = self._readers[name]
            del readers[next(i for i, n in enumerate(readers) if n is node)]
        for name in node.output:
            self._producer.pop(name, None)

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
        """Each once and in the graph's order, with those whose branches or loop bodies read it."""
        return sorted(self._readers.get(tensor, ()), key=lambda node: self._at[id(node)])

    def sole_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads ``tensor``, unless the tensor is also an output of the graph."""
        found = self._readers.get(tensor, ())
        return found[0] if len(found) == 1 and tensor not in {o.name for o in self.outputs} else None

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return self._producer.get(tensor)

    def infer(self) -> None:
        """Shapes and types anew, by ONNX's inference; where it knows nothing, as the file says."""
        self.inferred = self.light_model()
        try:
            found = onnx.shape_inference.infer_shapes(self.inferred, data_prop=True).graph
        except Exception:  # of a file whose shapes do not fit together, which is said where a layer has none
            found = onnx.GraphProto()
        said = [v for v in (*self.original.graph.value_info, *self.outputs) if v.name in self._producer]
        values = {v.name: v for v in (*said, *self.inputs)}
        values |= {v.name: v for v in (*found.value_info, *found.output) if v.type.WhichOneof("value")}
        self._values = {name: v for name, v in values.items() if name not in self.constants}
        self.shapes: dict[str, tuple[int | str, ...] | None] = {name: dims(v) for name, v in self._values.items()}
        self.types = {name: v.type.tensor_type.elem_type for name, v in self._values.items()}
        for name, array in self.constants.items():
            self.note(name, array)

    def note(self, name: str, array: np.ndarray) -> None:
        """A constant, new or instead of another one."""
        self.constants[name], self.shapes[name] = array, array.shape
        self.types[name] = self._type_of(name)

    def originals(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, ...]:
        """ONNX's own nodes that compute what ``node`` does: itself, unless it is one of kerf's."""
        return self._originals[node.output[0]] if node.domain == OWN else (node,)

    def part(self, nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
        """A graph of these nodes of this one, with tensors of this one as its inputs and outputs."""
        part = copy.copy(self)
        part.inputs, part.outputs = [self.value(t) for t in inputs], [self.value(t) for t in outputs]
        part.set_nodes(nodes)
        return part

    def value(self, tensor: str) -> onnx.ValueInfoProto:
        """Name, type and, as far as they are known, sizes of a tensor; without a type where inference found none."""
        if tensor in self.constants:
            return self._described(tensor)
        return self._values.get(tensor) or onnx.ValueInfoProto(name=tensor)

    def described(self, name: str) -> Value:
        """dtype "object" for strings, and for what is no tensor or of a type that is not known."""
        kind = self.value(name).type
        element = kind.tensor_type.elem_type if kind.WhichOneof("value") == "tensor_type" else 0
        shape = self.shapes.get(name) if element else None
        sizes = None if shape is None else tuple(d if isinstance(d, int) and d >= 0 else None for d in shape)
        dtype = str(helper.tensor_dtype_to_np_dtype(element)) if element else "object"
        readers = self._readers.get(name, ())
        return Value(
            name, dtype, sizes, dtype in ("uint8", "int8") and bool(readers) and all(map(_as_numbers, readers))
        )

    def light_model(self) -> onnx.ModelProto:
        """The graph with its large constants as inputs and nothing said of shapes: quick to serialise, below 2 GB."""
        large = self.large_constants()
        inputs = [self._described(name) for name in large]
        others = [n for n in self.nodes if n.domain not in STANDARD]
        foreign = {name for node in others for name in node.output}
        said = [v for v in self.original.graph.value_info if v.name in foreign]
        outputs = [onnx.ValueInfoProto(name=o.name) if o.name not in foreign else o for o in self.outputs]
        return self._model(inputs, outputs, said, set(self.constants) - set(large))

    def large_constants(self) -> list[str]:
        return [name for name, array in self.constants.items() if array.size > SMALL]

    def model(self, extra_inputs: Sequence[onnx.ValueInfoProto] = ()) -> onnx.ModelProto:
        """The graph as a model with the shapes that are known, constants that are still read included."""
        names = {o.name for o in self.outputs}
        known = self._values | {name: self._described(name) for name in names & set(self.constants)}
        outputs = [known.get(o.name, o) for o in self.outputs]
        values = [v for name, v in self._values.items() if name in self._producer and name not in names]
        return self._model(extra_inputs, outputs, values, set(self.constants))

    def _model(
        self,
        extra_inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        values: Sequence[onnx.ValueInfoProto],
        constants: set[str],
    ) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in reads(node)} | {o.name for o in self.outputs}
        tensors = [self.tensor(name) for name in self.constants if name in constants and name in read]
        name = self.original.graph.name or "kerf"
        graph = helper.make_graph(self.nodes, name, [*self.inputs, *extra_inputs], outputs, tensors, value_info=values)
        opsets = {o.domain: o.version for o in self.original.opset_import}
        if any(node.domain == OWN for node in self.nodes):
            opsets[OWN] = 1
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        version = max(self.original.ir_version, 10)
        made = helper.make_model(graph, opset_imports=imports, ir_version=version, functions=self.original.functions)
        made.metadata_props.extend(self.original.metadata_props)
        return made

    def tensor(self, name: str) -> onnx.TensorProto:
        """The file's own where the constant is as it was read: strings and 4-bit numbers stay what they are."""
        array = self.constants[name]
        return self._stored[name] if self._read.get(name) is array else numpy_helper.from_array(array, name)

    def _described(self, constant: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(constant, self._type_of(constant), self.constants[constant].shape)

    def _type_of(self, name: str) -> int:
        stored = self._stored.get(name) if self._read.get(name) is self.constants[name] else None
        return stored.data_type if stored else helper.np_dtype_to_tensor_dtype(self.constants[name].dtype)


def _as_numbers(reader: onnx.NodeProto) -> bool:
    """Whether a node makes numbers of the integers that it reads."""
    to_floats = reader.op_type == "Cast" and attributes(reader)["to"] == onnx.TensorProto.FLOAT
    return to_floats or reader.op_type == "DequantizeLinear" or reader.domain == OWN


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """Of any type. Raises BadInput for a tensor with more or fewer numbers than its shape says."""
    try:
        if tensor.data_type == onnx.TensorProto.STRING:  # need not be text
            return np.array([*tensor.string_data, None], object)[:-1].reshape(tensor.dims)
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise BadInput(f"constant {tensor.name!r} is cut short ({error}); export the file again") from error


def reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node needs, those its branches and loop bodies capture included."""
    names = {name for name in node.input if name}
    return names.union(*(captured(graph) for graph in subgraphs(node))) if node.attribute else names


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    kinds = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
    return [g for a in node.attribute if a.type in kinds for g in (a.graphs or [a.g])]


def captured(graph: onnx.GraphProto) -> set[str]:
    """What a branch or a loop body takes from outside."""
    own = {v.name for v in (*graph.input, *graph.initializer)} | {name for n in graph.node for name in n.output}
    return {o.name for o in graph.output}.union(*(reads(n) for n in graph.node)) - own


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
