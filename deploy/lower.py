"""Network + a kernel for every layer -> one Relax function (x, packed weights ...) -> y, and those packed weights.

Layers become calls of their TIR functions; every other operator goes through TVM's own ONNX importer.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
import tvm
from onnx import TensorProto, helper
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter
from tvm.target import Target

from deploy.convert import Network
from deploy.layout import call, reshaped
from deploy.legalize import legalize
from deploy.passes.fuse_layers import DOMAIN, OP, Layer
from kernels import BY_NAME
from kernels.bsr import BSR
from kernels.kernel import Config
from kernels.problem import Problem


@dataclass(frozen=True)
class Choice:
    """What computes a layer."""

    problem: Problem  # the layer's own, or its dense twin
    kernel: str
    config: Config

    def pack(self, layer: Layer) -> dict[str, np.ndarray]:
        weight = BSR.from_conv(layer.weight, self.problem.block) if self.problem.block else layer.weight
        return BY_NAME[self.kernel].pack(self.problem, weight, self.config)

    def prim_func(self, target: Target) -> tvm.tirx.PrimFunc:
        return BY_NAME[self.kernel].prim_func(self.problem, self.config, target)


def lower(network: Network, choices: dict[str, Choice], target: Target) -> tuple[tvm.IRModule, dict[str, np.ndarray]]:
    """The module with the function "main", and the arrays that follow the image in its parameters, in order."""
    packed: dict[str, np.ndarray] = {}
    for name, layer in network.layers.items():
        arrays = {**choices[name].pack(layer), "bias": layer.bias.astype(np.float32)}
        packed.update({f"{name}.{key}": array for key, array in arrays.items()})
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
    inputs = [helper.make_tensor_value_info(k, kinds[a.dtype], a.shape) for k, a in packed.items()]
    model = network.graph.model(inputs)
    weights = {name: [k for k in packed if k.rpartition(".")[0] == name] for name in choices}
    importer = _Importer(choices, weights, target)
    # the importer prints what it is about to raise
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message="Renaming name")
        try:
            module = importer.from_onnx(model.graph, network.graph.opset)
        except (RuntimeError, NotImplementedError, AssertionError, TypeError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise ValueError(f"{network.path}: TVM's ONNX importer refuses it ({reason})") from error
    return legalize(module, target), packed


class _Importer(ONNXGraphImporter):
    """TVM's importer plus kerf::Layer."""

    def __init__(self, choices: dict[str, Choice], weights: dict[str, list[str]], target: Target):
        super().__init__({}, "float32")
        self._dtype = {}  # every value has the type that the file gives it
        self._choices, self._weights, self._target = choices, weights, target
        self._functions: dict[str, relax.GlobalVar] = {}

    def _check_for_unsupported_ops(self, graph):
        others = [node for node in graph.node if node.domain != DOMAIN]
        try:
            super()._check_for_unsupported_ops(helper.make_graph(others, "others", [], []))
        except tvm.error.OpNotImplemented as error:
            raise ValueError(f"{str(error).splitlines()[-1]}; replace them in the network, or split it") from error

    def _convert_operator(self, op_name, inputs, attrs, opset):
        if op_name != OP:
            return super()._convert_operator(op_name, inputs, attrs, opset)
        name = attrs["tvm_custom"]["name"]
        choice = self._choices[name]
        p = choice.problem
        images = [reshaped(self.bb, v, p.in_shape if i == 0 else p.out_shape) for i, v in enumerate(inputs)]
        packed = [self._nodes[key] for key in self._weights[name]]
        y = call(self.bb, self._function(choice), images, packed, p.out_shape, self._target)
        return reshaped(self.bb, y, p.out_shape[: len(inputs[0].ty.shape)])

    def _function(self, choice: Choice) -> relax.GlobalVar:
        """One function for all layers of equal problem, kernel and configuration."""
        key = f"{choice.problem.to_json()} {choice.kernel} {sorted(choice.config.items())}"
        if key not in self._functions:
            func = choice.prim_func(self._target).without_attr("global_symbol")
            self._functions[key] = self.bb.add_func(func, f"{choice.kernel}_{len(self._functions)}")
        return self._functions[key]
