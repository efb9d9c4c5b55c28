"""A copy of a module whose weights are parameters, where the module computes them before each call.

torch.nn.utils.prune, weight_norm and spectral_norm do so in a hook and leave the weight as an attribute;
torch.nn.utils.parametrize does so when the weight is read. The module that was given keeps its hooks and its names.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from kerf.errors import Unsupported

WRAPPERS = ("module", "_orig_mod")  # where DataParallel and torch.compile keep the module
# what a hook computes the weight from is called <weight><ending>
INGREDIENTS: dict[type, tuple[str, ...]] = {
    BasePruningMethod: ("_orig", "_mask"),
    WeightNorm: ("_g", "_v"),
    SpectralNorm: ("_orig", "_u", "_v"),
}


def plain_copy(model: nn.Module) -> nn.Module:
    """The module on the CPU in f32 and in evaluation mode, without gradients, its computed weights as parameters.

    Raises ValueError for a module that torch has compiled to a program of its own, and for one that cannot be copied.
    """
    while (name := _wraps(model)) is not None:
        model = getattr(model, name)
    if isinstance(model, torch.jit.ScriptModule):
        raise Unsupported(f"{type(model).__name__} is a TorchScript program; export the torch module it was made of")
    memo: dict[int, Any] = {id(t): t.detach().clone() for m in model.modules() for t in _computed(vars(m))}
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # whatever an attribute's own __deepcopy__ or __reduce__ raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unsupported(
            f"{type(model).__name__} cannot be copied ({reason}), and export works on a copy; "
            "make the module anew without that attribute, load its state_dict() and export that"
        ) from error
    copied.to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    copied.eval().requires_grad_(False)
    with torch.no_grad():
        for module in list(copied.modules()):
            _fold_hooks(module)
            _own_attributes(module)
        for module in list(copied.modules()):
            _fold_parametrisations(module)
    return copied.requires_grad_(False)


def _wraps(model: nn.Module) -> str | None:
    wrapping = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrapping):
        return WRAPPERS[0]
    return WRAPPERS[1] if isinstance(getattr(model, WRAPPERS[1], None), nn.Module) else None


def _computed(value: object) -> Iterator[Tensor]:
    """Tensors with a history in a module's attributes: a weight that a hook left, outputs that somebody keeps."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _computed(part)


def _fold_hooks(module: nn.Module) -> None:
    """Weights become what the hooks compute them as; the hooks and what they compute from go."""
    weights: dict[str, Tensor] = {}
    gone: set[str] = set()
    for key, hook in list(module._forward_pre_hooks.items()):
        kind = next((kind for kind in INGREDIENTS if isinstance(hook, kind)), None)
        if kind is not None:
            name = hook._tensor_name if isinstance(hook, BasePruningMethod) else vars(hook)["name"]
            hook(module, ())
            weights[name] = getattr(module, name).detach().clone()
            gone |= {f"{name}{ending}" for ending in INGREDIENTS[kind]}
            del module._forward_pre_hooks[key]
    for name in gone:
        if hasattr(module, name):
            delattr(module, name)
    for name in weights.keys() - gone:
        _set(module, name, weights[name])


def _own_attributes(module: nn.Module) -> None:
    """A weight or bias that somebody has set as an attribute is a parameter that they took off the list."""
    for name in ("weight", "bias"):
        value = vars(module).get(name)
        if isinstance(value, Tensor) and value.is_floating_point():
            _set(module, name, value.detach().to("cpu", torch.float32))


def _fold_parametrisations(module: nn.Module) -> None:
    """By hand: torch's own removal takes the property off a class that the module shares with what it was copied from,
    and writes into a tensor that another module may share.
    """
    if not parametrize.is_parametrized(module):
        return
    parametrizations = module.get_submodule("parametrizations")
    weights = {name: getattr(module, name).detach().clone() for name, _ in parametrizations.named_children()}
    module.__class__ = type(module).__bases__[0]  # torch derives the class that computes them from the module's own
    del module.parametrizations
    for name, value in weights.items():
        _set(module, name, value)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    for place in (vars(module), module._parameters, module._buffers):
        place.pop(name, None)
    module.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=False))
