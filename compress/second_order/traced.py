"""A torch module as a Program: its ATen graph, node by node, with the parameters that it had and those that it has."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from kerf.compress.network.blocks import CONVOLUTIONS
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import exported
from kerf.compress.second_order.layer import Layer, Window
from kerf.compress.second_order.walk import Values

aten = torch.ops.aten
LAYERS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, aten.linear.default),
)


BATCH = 64


def batched(images: Tensor) -> list[Tensor]:
    """(B, C, H, W) -> batches of one size, at most BATCH, as a traced graph has one; some images fill the last up."""
    parts = -(-len(images) // BATCH)
    size = -(-len(images) // parts)
    filled = torch.cat([images, images[: parts * size - len(images)]])
    return list(filled.split(size))


class Traced:
    """``example``: a batch as all will be. The module is read, and computed, in evaluation mode."""

    def __init__(self, model: nn.Module, graph: DependencyGraph, example: Tensor):
        program = exported(model, example)
        self.model, self.graph, self.module = model, graph, program.graph_module
        signature = program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constants = {n: program.constants[p] for n, p in signature.inputs_to_lifted_tensor_constants.items()}
        self.paths = {n.name: stored[n.name] for n in program.graph.nodes if n.name in stored}
        self.inputs = list(signature.user_inputs)
        self.nodes = [n for n in program.graph.nodes if n.op in ("call_function", "get_attr")]
        self.place = {n.name: i for i, n in enumerate(self.nodes)}
        self.dense = {path: _at(model, path).detach().clone() for path in self.paths.values()}
        self.last = {
            n.name: max((self.place.get(u.name, len(self.nodes)) for u in n.users), default=-1)
            for n in program.graph.nodes
        }
        self.changed: set[str] = set()
        self.layers = [layer for node in self.nodes if (layer := self._layer(node))]

    def start(self, batch: Tensor) -> Values:
        return {"": (0, None), self.inputs[0]: (batch, batch)}

    @torch.no_grad()
    def run(self, values: Values, layer: Layer | None) -> Values:
        values = dict(values)
        first = values[""][0]
        stop = self.place[layer.makes] if layer else len(self.nodes)
        for i in range(first, stop):
            node = self.nodes[i]
            values[node.name] = self._computed(node, values)
            for source in node.all_input_nodes:
                if self.last[source.name] <= i:
                    values.pop(source.name, None)
        if layer:
            values[layer.makes] = self._side(self.nodes[stop], values, 0), None
        values[""] = stop, None
        return values

    def _computed(self, node: torch.fx.Node, values: Values) -> tuple[Any, Any]:
        if node.op == "get_attr":
            found = getattr(self.module, str(node.target))
            return found, found
        dense = self._side(node, values, 0)
        return dense, dense if self._same(node, values) else self._side(node, values, 1)

    def _same(self, node: torch.fx.Node, values: Values) -> bool:
        """Whether the node computes the same in both networks."""
        return all(self._alike(source, values) for source in node.all_input_nodes)

    def _side(self, node: torch.fx.Node, values: Values, side: int) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self._value(n, values, side))
        return cast(Callable, node.target)(*args, **kwargs)

    def _alike(self, node: torch.fx.Node, values: Values) -> bool:
        if node.name in self.paths:
            return self.paths[node.name] not in self.changed
        return node.name in self.constants or values[node.name][0] is values[node.name][1]

    def _value(self, node: torch.fx.Node, values: Values, side: int) -> Any:
        if node.name in self.paths:
            path = self.paths[node.name]
            return _at(self.model, path).detach() if side else self.dense[path]
        if node.name in self.constants:
            return self.constants[node.name]
        return values[node.name][side]

    def _layer(self, node: torch.fx.Node) -> Layer | None:
        """Where the node is one that can be fitted: its weight is a parameter that nothing else reads."""
        if node.target not in LAYERS:
            return None
        x, weight = cast(tuple[torch.fx.Node, torch.fx.Node], node.args[:2])
        path = self.paths.get(weight.name)
        if path is None or path in self.graph.reused:
            return None
        module = self.model.get_submodule(path.rpartition(".")[0])
        if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            return None
        window, groups = None, 1
        if isinstance(module, CONVOLUTIONS):
            sides = list(module._reversed_padding_repeated_twice)
            padding = tuple((sides[i], sides[i + 1]) for i in range(len(sides) - 2, -1, -2))
            mode = {"zeros": "constant"}.get(module.padding_mode, module.padding_mode)
            window = Window(module.kernel_size, module.stride, module.dilation, padding, mode)
            groups = module.groups
        dense = self.dense[path]
        biased = module.bias is not None or path in self.graph.norms
        return Layer(path, x.name, node.name, dense.flatten(1), window, groups, biased, dense.shape)

    @torch.no_grad()
    def write(self, layer: Layer, weight: Tensor, constant: Tensor) -> None:
        """Gives the pruned network's layer ``weight`` (O, d), and ``constant`` (O,) in place of its bias.

        Where it has none, the batch norm behind it takes that off its mean; without either there is none.
        """
        parameter = self.model.get_parameter(layer.name)
        parameter.copy_(weight.view(parameter.shape))
        self.changed.add(layer.name)
        owner = layer.name.rpartition(".")[0]
        bias, norm = self.model.get_submodule(owner).bias, self.graph.norms.get(layer.name)
        if isinstance(bias, Tensor):
            bias.copy_(constant)
            self.changed.add(f"{owner}.bias")
        elif norm:
            path = f"{norm}.running_mean"
            _at(self.model, path).copy_(self.dense[path] - constant.to(self.dense[path]))
            self.changed.add(path)


def _at(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)
