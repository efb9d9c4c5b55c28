"""A module as a graph of ATen calls, and what is changed in it: computed weights, batch norms, denormals."""

import inspect
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from kerf.arguments import arguments
from kerf.deploy.from_torch.signature import described, register, tensors
from kerf.errors import BadInput, Unsupported

ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default)
FOLD: dict[object, Callable[..., tuple[Tensor, Tensor]]] = {
    **dict.fromkeys(CONVOLUTIONS, fuse_conv_bn_weights),
    ATEN.linear.default: fuse_linear_bn_weights,
}


def trace(model: nn.Module, example: Any) -> tuple[GraphModule, Any]:
    """The model as a graph of ATen calls on its own parameters, which keep their paths ("layer1.0.conv1.weight").

    ``example`` is a tensor, a tuple of them or a dict by name. The second result is what the model answers to it.
    Raises ValueError for a model that fails on the example or takes more inputs than that.
    """
    name = type(model).__name__
    args, named = arguments(example)
    needed = _required(model)
    if needed > len(args) + len(named):
        raise Unsupported(
            f"{name} takes {needed} inputs, and the example has {len(args) + len(named)}: give a tuple of them, or a "
            "dict by name"
        )
    try:
        with torch.no_grad():
            output = model(*args, **named)
    except Exception as error:  # whatever the model throws, the caller gets one line
        raise BadInput(
            f"{name} cannot be traced with {described(example)}: {where(model, error)}{reason(error)}"
        ) from error
    register(output)
    if not tensors(output):
        raise Unsupported(
            f"{name} returns {type(output).__name__} without a tensor; export expects one, or tuples, lists and dicts "
            "of them"
        )
    try:
        graph_module = torch.export.export(model, args, named).module(check_guards=False)
    except Exception as error:  # of many types, most of them private
        advice = "; where forward chooses by a tensor's values, export the branch you need" if _by_value(error) else ""
        raise Unsupported(
            f"{name} cannot be traced with {described(example)}: {where(model, error)}{reason(error)}{advice}"
        ) from error
    return graph_module, output


def _required(model: nn.Module) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def _by_value(error: Exception) -> bool:
    return "data-dependent" in str(error)


def reason(error: BaseException) -> str:
    """The first line of an error, without what colours a terminal."""
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().removesuffix(".")


def where(model: nn.Module, error: BaseException) -> str:
    """The innermost of the model's modules that was at work when it failed: 'in layer1.0 (Block): '; '' for itself."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and paths.get(id(module)):
            found = f"in {paths[id(module)]} ({type(module).__name__}): "
    return found


def fold_computed_weights(module: GraphModule) -> GraphModule:
    """Weights and biases of layers that the graph computes from parameters alone are parameters afterwards, in place.

    As of a network that multiplies its weight by a mask, or standardises it, in its forward.
    """
    graph, stored = module.graph, tensors_of(module)
    for node in list(graph.nodes):
        if node.target not in FOLD and node.target is not ATEN.conv_transpose2d.input:
            continue
        for place, name in ((1, "weight"), (2, "bias")):
            computed = node.args[place] if len(node.args) > place else None
            if not isinstance(computed, Node) or computed.op != "call_function":
                continue
            value = _constant(computed, stored)
            if value is None:
                continue
            path = _free(module, f"{module_of(node)}.{name}".removeprefix("."), stored)
            set_parameter(module, path, value)
            stored[path] = value
            with graph.inserting_before(node):
                replacement = graph.get_attr(path)
            node.update_arg(place, replacement)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def _constant(node: Node, stored: dict[str, Tensor]) -> Tensor | None:
    """What the node computes, if it computes from stored tensors and numbers alone."""
    values: dict[Node, Any] = {}

    def evaluate(n: Node) -> bool:
        if n in values:
            return True
        if n.op == "get_attr" and n.target in stored:
            values[n] = stored[str(n.target)]
            return True
        if n.op != "call_function" or not callable(n.target) or not all(map(evaluate, n.all_input_nodes)):
            return False
        args, kwargs = torch.fx.map_arg((n.args, n.kwargs), values.__getitem__)
        values[n] = n.target(*args, **kwargs)
        return True

    found = values[node] if evaluate(node) else None
    return found if isinstance(found, Tensor) else None


def module_of(node: Node) -> str:
    """The path of the module whose forward called it; torch writes an index behind a module's second call."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return re.sub(r"@\d+$", "", stack[-1][0]) if stack else ""


def _free(module: nn.Module, path: str, taken: dict[str, Tensor]) -> str:
    prefix, dot, name = path.rpartition(".")
    if prefix not in dict(module.named_modules()):  # it had no tensors of its own
        prefix, dot = prefix.replace(".", "_"), "_"
    tries = (f"{prefix}{dot}{f'computed{i}_' if i else ''}{name}" for i in range(len(taken) + 1))
    return next(path for path in tries if path not in taken)


def fold_batchnorm(module: GraphModule) -> GraphModule:
    """Folds every batch norm that is the only reader of a convolution or linear into its weight and bias, in place.

    Works on the graph, so what counts is who reads what and not how modules are called or nested. A convolution with a
    second reader, or whose weight is used twice, keeps its batch norm. The arithmetic is float64, rounded once.
    """
    stored = dict(module.named_parameters()) | dict(module.named_buffers())
    reads = [n.target for n in module.graph.nodes if n.op == "get_attr" for _ in n.users]
    uses = Counter(stored[path].data_ptr() for path in reads if path in stored)
    for norm, layer in list(_pairs(module)):
        weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
        sources = [s for s in (weight, bias, *norm.args[1:5]) if s is not None]  # weight, bias, running mean, variance
        if any(not isinstance(s, Node) or s.target not in stored for s in sources):
            continue
        path = _target(weight)
        taken = bias is None and f"{path.removesuffix('weight')}bias" in stored
        if taken or any(uses[stored[_target(s)].data_ptr()] > 1 for s in (weight, bias) if s is not None):
            continue
        _fold(module, norm, layer, stored)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _pairs(module: GraphModule) -> Iterator[tuple[Node, Node]]:
    """A batch norm and the layer that it alone reads."""
    for node in module.graph.nodes:
        layer = node.args[0] if node.target is ATEN.batch_norm.default else None
        if isinstance(layer, Node) and layer.target in FOLD and len(layer.users) == 1:
            yield node, layer


def _fold(module: GraphModule, norm: Node, layer: Node, stored: dict[str, Tensor]) -> None:
    def value(source: object) -> Tensor | None:
        return stored[_target(source)].double() if source is not None else None

    path = _target(layer.args[1])
    bias_path = f"{path.removesuffix('weight')}bias"
    old_bias = layer.args[2] if len(layer.args) > 2 else None
    scale, shift, mean, variance = map(value, norm.args[1:5])
    new_weight, new_bias = FOLD[layer.target](
        value(layer.args[1]), value(old_bias), mean, variance, norm.args[7], scale, shift
    )
    set_parameter(module, path, new_weight)
    set_parameter(module, bias_path, new_bias)
    with module.graph.inserting_before(layer):
        bias = module.graph.get_attr(bias_path)
    layer.args = (layer.args[0], layer.args[1], bias, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)


def _target(source: object) -> str:
    """The path of the stored tensor that a node reads."""
    assert isinstance(source, Node)
    return str(source.target)


def set_parameter(module: nn.Module, path: str, value: Tensor) -> None:
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, nn.Parameter(value.float().contiguous(), requires_grad=False))


def flush_denormals(module: nn.Module) -> None:
    """Sets weights below the smallest normal float32 (1.2e-38), and -0.0, to +0.0, in place.

    Weight decay drives dead weights into the denormal range, where a multiplication costs a CPU many times more, and
    a masked weight times a negative batch norm scale is -0.0.
    """
    smallest = torch.finfo(torch.float32).tiny
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data[tensor.abs() < smallest] = 0.0
