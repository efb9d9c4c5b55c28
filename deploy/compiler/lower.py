"""Network + a kernel for every layer -> one Relax function (x, packed weights ...) -> y, and those packed weights.

Layers and the operators that kerf has functions for become calls of TIR functions; what is left goes through TVM's own
ONNX importer.
"""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import tvm
from onnx import TensorProto, helper
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter
from tvm.target import Target

from kerf.deploy.compiler.choice import Choice
from kerf.deploy.compiler.layout_changes import call, reshaped, shape_of
from kerf.deploy.compiler.legalize import legalize
from kerf.deploy.compiler.operators import emit
from kerf.deploy.frontend import refusals
from kerf.deploy.frontend.network import DOMAIN, OP, Network
from kerf.deploy.frontend.operators.fusion import operations
from kerf.deploy.frontend.operators.operation import Operation
from kerf.errors import BadInput, Unsupported
from kerf.kernels.backends import backend_of
from kerf.kernels.cpu import expand_depthwise
from kerf.kernels.form import Form
from kerf.kernels.pointwise.program import FLOAT


def lower(
    network: Network, choices: dict[str, Choice], pairs: dict[str, str], target: Target
) -> tuple[tvm.IRModule, dict[str, np.ndarray]]:
    """The module with the function "main", and the arrays that follow the image in its parameters, in order.

    ``pairs``: layers that are computed together with the one behind them (kerf.deploy.compiler.pairs).
    """
    packed: dict[str, np.ndarray] = {}
    for name, layer in network.layers.items():
        packed.update({f"{name}.{key}": array for key, array in choices[name].pack(layer).items()})
    kinds = {np.dtype(k): getattr(TensorProto, v) for k, v in KINDS.items()}
    inputs = [helper.make_tensor_value_info(k, kinds[a.dtype], a.shape) for k, a in packed.items()]
    model = network.graph.model(inputs)
    weights = {name: [k for k in packed if k.rpartition(".")[0] == name] for name in network.layers}
    form = backend_of(target).form(target, next(iter(network.layers.values())).problem.dtype)
    own = operations(network.graph, form.operators)
    nodes = [node for node in model.graph.node if node.output[0] not in own.absorbed]
    for node in nodes:
        if node.output[0] in own.by_output:  # the importer hands on a node's name, by which its operation is found
            del node.attribute[:]
            node.op_type, node.domain, node.name = OWN, DOMAIN, node.output[0]
            node.input[:] = own.by_output[node.name].tensors
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    dense = {name for name, layer in network.layers.items() if layer.op == "dense"}
    importer = _Importer(choices, pairs, weights, own.by_output, dense, target, form)
    # the importer prints what it is about to raise
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message="Renaming name")
        try:
            return legalize(importer.from_onnx(model.graph, network.graph.opset), form), packed
        except _Unsupported as error:
            raise BadInput(f"{network.path}: {error}") from error
        except (ValueError, RuntimeError, NotImplementedError, AssertionError, TypeError, KeyError) as error:
            importer.abandon()
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = (
                f"{network.path}: TVM refuses the network ({lines[0] if isinstance(error, ValueError) else lines[-1]})"
            )
            raise BadInput(refusals.wrong_shapes(network.path, network.graph) or reason) from error


OWN = "Operation"  # what the importer calls a node with an Operation
KINDS = {  # of packed arrays
    **{"float32": "FLOAT", "float16": "FLOAT16"},
    **{f"{sign}int{bits}": f"{sign}INT{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32)},
}


class _Unsupported(Unsupported):
    """Operators that TVM's importer does not know."""


class _Importer(ONNXGraphImporter):
    """TVM's importer plus kerf::Layer, and kerf::Operation for every other node that kerf has a function for."""

    def __init__(
        self,
        choices: dict[str, Choice],
        pairs: dict[str, str],
        weights: dict[str, list[str]],
        own: dict[str, Operation],
        dense: set[str],
        target: Target,
        form: Form,
    ):
        super().__init__({}, "float32")
        self._dtype: dict = {}  # every value has the type that the file gives it
        self._choices, self._weights, self._target, self._form = choices, weights, target, form
        self._own, self._dense = own, dense
        self._pairs, self._firsts = pairs, {second: first for first, second in pairs.items()}
        self._functions: dict[str, relax.GlobalVar] = {}

    def abandon(self) -> None:
        """Ends what an error left open: TVM warns of it on its own stream."""
        with contextlib.suppress(Exception):
            while True:
                self.bb._end_block()

    def _check_for_unsupported_ops(self, graph):
        others = [node for node in graph.node if node.domain != DOMAIN]
        try:
            super()._check_for_unsupported_ops(helper.make_graph(others, "others", [], []))
        except tvm.error.OpNotImplemented as error:
            reason = f"{str(error).splitlines()[-1]}; replace them in the network, or split it"
            raise _Unsupported(reason) from error

    def _convert_operator(self, op_name, inputs, attrs, opset):
        if op_name not in (OP, OWN):
            return super()._convert_operator(op_name, inputs, attrs, opset)
        name = attrs["tvm_custom"]["name"]
        if op_name == OWN:
            return emit(self.bb, self._form, self._own[name], inputs)
        if name in self._pairs:
            return inputs[0]  # the layer behind it computes both
        names = [self._firsts[name], name] if name in self._firsts else [name]
        p, shape = self._choices[names[0]].problem, self._choices[name].problem.out_shape
        images = [reshaped(self.bb, v, p.in_shape if i == 0 else shape) for i, v in enumerate(inputs)]
        packed = [self._nodes[key] for n in names for key in self._weights[n]]
        function = self._function([self._choices[n] for n in names])
        kind = self._choices[name].problem.y
        y = call(self.bb, function, images, packed, shape, self._form, kind.numpy if kind.quantised else FLOAT)
        given = shape_of(inputs[0])
        # rows keep their dimensions; an image of 1-D is one row
        whole = (*given[:-1], shape[1]) if name in self._dense else shape if len(given) == 4 else (*shape[:2], shape[3])
        return reshaped(self.bb, y, whole)

    def _function(self, choices: list[Choice]) -> relax.GlobalVar:
        """One function for all layers, or pairs of them, of equal problem, kernel and configuration."""
        key = " ".join(f"{c.problem.to_json()} {c.kernel} {sorted(c.config.items())}" for c in choices)
        if key not in self._functions:
            first, *second = choices
            if second:
                args = first.problem, first.kernel, first.config, second[0].problem, second[0].config
                func, name = expand_depthwise.prim_func(*args, self._target), f"{first.kernel}_depthwise"
            else:
                func, name = first.prim_func(self._target), first.kernel
            func = func.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
            self._functions[key] = self.bb.add_func(func, f"{name}_{len(self._functions)}")
        return self._functions[key]
