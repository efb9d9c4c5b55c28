"""The state in which a network is looked at, and what its layers are seen to take in."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from kerf.arguments import arguments, dataclasses_in
from kerf.compress.network.blocks import CONVOLUTIONS
from kerf.errors import BadInput


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks when the block ends."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inputs(
    model: nn.Module, paths: Iterable[str], batches: Iterable[Tensor], see: Callable[[str, nn.Module, Tensor], None]
) -> None:
    """Shows `see` these modules and their inputs, batch by batch of images (B, C, H, W)."""

    def hook(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        see(path, module, args[0])

    with hooked(model.get_submodule(path).register_forward_pre_hook(partial(hook, path)) for path in paths):
        for x in batches:
            model(x)


def answer(model: nn.Module, example: Any) -> Any:
    """What the model says of an example: a tensor, a tuple of inputs or a dict of them by name."""
    args, named = arguments(example)
    return model(*args, **named)


def tensors(structure: Any) -> list[Tensor]:
    """The tensors in tuples, lists, dicts and registered dataclasses, nested or not."""
    return [leaf for leaf in _pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


def images_in(example: Any) -> int:
    """The batch of an example: the length of its first tensor."""
    return len(tensors(example)[0])


def described(example: Any) -> str:
    found = tensors(example)
    if len(found) == 1:
        return f"an input of shape {tuple(found[0].shape)}"
    return f"inputs of shapes {', '.join(str(tuple(t.shape)) for t in found)}"


@torch.no_grad()
def register_outputs(model: nn.Module, example: Any) -> None:
    """Dataclasses in what the model returns become known to torch's pytrees, by which torch.export takes them apart."""
    for kind in dataclasses_in(answer(model, example)):
        if kind not in _pytree.SUPPORTED_NODES:
            _pytree.register_dataclass(kind)


def exported(model: nn.Module, example: Any, training: bool = False) -> torch.export.ExportedProgram:
    """The model's ATen graph. Raises BadInput, of one line, where torch.export cannot read it."""
    before = [(m, m.training) for m in model.modules()]
    model.train(training)
    try:
        register_outputs(model, example)
        return torch.export.export(model, *arguments(example))
    except Exception as error:  # of many types, most of them private
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        mode = " in training mode" if training else ""
        raise BadInput(f"{type(model).__name__} cannot be traced{mode} on {described(example)}: {reason}") from error
    finally:
        for module, was in before:
            module.training = was


def twice(example: Any) -> Any:
    """Two inputs at once, since batch norm in training has no variance of one."""
    return _pytree.tree_map(lambda t: torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t, example)


def unread(program: torch.export.ExportedProgram, canonical: Mapping[str, str]) -> list[str]:
    """Parameters that the graph does not read."""
    stored = program.graph_signature.inputs_to_parameters
    named = {stored[n.name]: bool(n.users) for n in program.graph.nodes if n.op == "placeholder" and n.name in stored}
    read = {canonical.get(path, path) for path, users in named.items() if users}
    return [path for path in named if canonical.get(path, path) not in read]


@torch.no_grad()
def first_layers(model: nn.Module, example: Any) -> tuple[str, ...]:
    """Weights of the convolutions and linear layers that are handed an input of the network as it is."""
    given, found = {t.data_ptr() for t in tensors(example)}, dict[str, None]()

    def look(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].data_ptr() in given:
            found[f"{path}.weight".removeprefix(".")] = None

    layers = [(p, m) for p, m in model.named_modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    with evaluated(model), hooked(m.register_forward_pre_hook(partial(look, path)) for path, m in layers):
        answer(model, example)
    return tuple(found)
