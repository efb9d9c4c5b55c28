"""What goes into a network and what comes out: the tensors among its arguments and in its answer, and their names."""

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from kerf.arguments import arguments, dataclasses_in
from kerf.errors import Unsupported


def tensors(structure: Any) -> list[Tensor]:
    """The tensors in tuples, lists, dicts and registered dataclasses, in their order."""
    return [leaf for leaf in _pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


def answer(model: nn.Module, example: Any) -> Any:
    args, named = arguments(example)
    return model(*args, **named)


def register(value: Any) -> None:
    """Dataclasses in the value become known to torch's pytrees, by which torch.export takes answers apart."""
    for kind in dataclasses_in(value):
        if kind not in _pytree.SUPPORTED_NODES:
            _pytree.register_dataclass(kind)


def described(example: Any) -> str:
    shapes = [str(tuple(t.shape)) for t in tensors(example)]
    return f"an input of shape {shapes[0]}" if len(shapes) == 1 else f"inputs of shapes {', '.join(shapes)}"


def input_names(model: nn.Module, example: Any) -> list[str]:
    """ "input" for a tensor; of several the names that a dict has, or those of forward's arguments."""
    args, named = arguments(example)
    if not named and len(tensors(args)) == 1:
        return ["input"]
    parameters = list(inspect.signature(model.forward).parameters.values())
    own = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    own += [f"input_{i}" for i in range(len(own), len(args))]
    return [*_paths(dict(zip(own, args)), "input"), *_paths(named, "input")]


def output_names(output: Any, taken: list[str]) -> list[str]:
    """ "output" for a tensor; else the keys on the way to each, output_0 … where it is a tuple."""
    if isinstance(output, Tensor):
        return ["output"]
    names = list(_paths(output, "output"))
    return [f"{name}_output" if name in taken else name for name in names]


def _paths(structure: Any, root: str) -> Iterator[str]:
    """A name for each tensor: keys and fields, with a number behind where there is a tuple or a list."""
    seen: Counter[str] = Counter()
    for path, leaf in _pytree.tree_flatten_with_path(structure)[0]:
        name = ""
        for part in path:
            if isinstance(part, _pytree.SequenceKey):
                name = f"{name or root}_{part.idx}"
            else:
                key = str(part.key) if isinstance(part, _pytree.MappingKey) else str(getattr(part, "name", part))
                name = f"{name}.{key}" if name else key
        if not isinstance(leaf, Tensor):
            raise Unsupported(
                f"{name or root} is a {type(leaf).__name__}; export expects tensors, alone or in tuples, lists and "
                "dicts: wrap the network so that it takes and returns no other"
            )
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}_{seen[name]}"


def float32(example: Any) -> Any:
    """The example on the CPU, in f32."""
    return _pytree.tree_map(lambda t: t.detach().to("cpu", torch.float32).contiguous(), example)
