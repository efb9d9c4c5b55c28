"""Layer-wise relevance propagation: how much every channel is answerable for the score of an image's class.

Source: Bach et al., PLoS ONE 10(7), 2015, the αβ rule with α = 2 and β = 1; batch norm, activations and biases pass it
on as it is, max-pooling to the winners, average pooling and sums in proportion. Gates, as of squeeze-excitation, get
none. Reads the network as it runs; functions without a rule are refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from kerf.compress.training import global_batch
from kerf.errors import BadInput

TINY = 1e-9
Linear = Callable[[Tensor], Tensor]


def divided(r: Tensor, z: Tensor) -> Tensor:
    """r / z, away from zero."""
    return r / (z + torch.where(z < 0, -TINY, TINY))


def backward(function: Linear, x: Tensor, r: Tensor) -> Tensor:
    """x ∘ Aᵀ(r / A x), for a linear A: each number of x gets what it adds to each of A x."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        z = function(leaf)
    return x * torch.autograd.grad(z, leaf, divided(r, z.detach()))[0]


def layer(x: Tensor, weight: Tensor, r: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """R_in of a convolution or linear layer: 2 R by the products x · w above zero, −R by those below.

    For x ≥ 0 the products above zero are those with W⁺, as the rule is mostly written.
    """
    above, below = weight.clamp(min=0), weight.clamp(max=0)
    if not bool((x < 0).any()):
        return backward(lambda x: apply(x, above), x, 2 * r) + backward(lambda x: apply(x, below), x, -r)
    parts = torch.stack([x.clamp(min=0), x.clamp(max=0)])
    found = backward(lambda p: apply(p[0], above) + apply(p[1], below), parts, 2 * r)
    found = found + backward(lambda p: apply(p[0], below) + apply(p[1], above), parts, -r)
    return found.sum(0)


class _Given(torch.autograd.Function):
    """`y`, computed elsewhere from the inputs; `rule` says what relevance each input gets of that of y."""

    @staticmethod
    def forward(ctx, rule: Callable[[Tensor], tuple[Tensor | None, ...]], y: Tensor, *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        return y.view_as(y)

    @staticmethod
    def backward(ctx, r: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.rule(r))


class _Propagating(TorchFunctionMode):
    """Functions within compute what they did; their gradients are relevances."""

    def __init__(self, names: Mapping[int, str]):
        super().__init__()
        self.names = names  # id of a weight -> path
        self.found: dict[str, Tensor] = {}
        self.source = torch.zeros((), requires_grad=True)  # so that what reads the images has a gradient

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in RULES:
            return RULES[function](self, function, *args, **kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and result.requires_grad and function not in MOVES:
            raise BadInput(f"relevance cannot be followed through {resolve_name(function) or function}: no rule")
        return result

    def weighted(self, function: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest, **more):
        plain, path = weight.detach(), self.names.get(id(weight))
        y = function(x.detach(), plain, None if bias is None else bias.detach(), *rest, **more)

        def rule(r: Tensor) -> tuple[Tensor | None, ...]:
            if path is not None:  # (B, O), the mean over pixels
                mean = r.flatten(2).mean(2) if r.ndim > 2 else r
                self.found[path] = self.found[path] + mean if path in self.found else mean
            if not x.requires_grad:
                return None, None
            apply = lambda x, w: function(x, w, None, *rest, **more)  # noqa: E731
            return layer(x.detach(), plain, r, apply), None

        return _Given.apply(rule, y, x, self.source)

    def passed(self, function: Callable, x: Tensor, *rest, **more) -> Tensor:
        y = function(x.detach().clone(), *rest, **more)  # a copy, which may be changed in place
        return _Given.apply(lambda r: (r,), y.detach(), x)

    def shared(self, function: Callable, x: Tensor, *rest, **more) -> Tensor:
        own = lambda x: function(x, *rest, **more)  # noqa: E731
        return _Given.apply(lambda r: (backward(own, x.detach(), r),), own(x.detach()), x)

    def added(self, function: Callable, a: Tensor, b: Tensor | float, **more) -> Tensor:
        if not isinstance(b, Tensor):
            return self.passed(torch.add, a, b, **more)
        if more or a.shape != b.shape:
            raise BadInput(f"relevance cannot be followed through a sum of {tuple(a.shape)} and {tuple(b.shape)}")
        y = a.detach() + b.detach()
        return _Given.apply(lambda r: (a.detach() * divided(r, y), b.detach() * divided(r, y)), y, a, b)

    def gated(self, function: Callable, a: Tensor, b: Tensor | float) -> Tensor:
        if isinstance(b, Tensor) and (b.numel() > a.numel() or not a.requires_grad):
            a, b = b, a
        if isinstance(b, Tensor) and b.requires_grad and b.numel() == a.numel():
            raise BadInput(f"relevance cannot be followed through a product of two {tuple(a.shape)}: which is a gate?")
        return self.passed(torch.mul, a, b.detach() if isinstance(b, Tensor) else b)


RULES: dict[Callable, Callable[..., Tensor]] = {
    **dict.fromkeys((F.conv2d, F.linear), _Propagating.weighted),
    **dict.fromkeys(
        (
            *(F.batch_norm, F.dropout, F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu, F.sigmoid),
            global_batch.batch_norm,  # in the place of torch's while several processes train
            *(torch.relu, torch.sigmoid, torch.clamp, Tensor.relu, Tensor.sigmoid, Tensor.clamp),
        ),
        _Propagating.passed,
    ),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, Tensor.mean), _Propagating.shared),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__add__), _Propagating.added),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), _Propagating.gated),
}
MOVES = {
    *(F.max_pool2d, F.pad, torch.cat, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze),
    *(Tensor.flatten, Tensor.reshape, Tensor.view, Tensor.transpose, Tensor.permute, Tensor.contiguous),
    *(Tensor.__getitem__, Tensor.squeeze, Tensor.unsqueeze, Tensor.expand),
}


def relevances(
    model: nn.Module, weights: Mapping[str, nn.Parameter], x: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (B, classes), and for each of `weights`, by path, the mean over pixels of the relevance of what it makes.

    Those are (B, O), of images x (B, C, H, W) whose classes y (B,) start with a relevance of one. The model has to be
    in evaluation mode. Raises ValueError where a function has no rule.
    """
    mode = _Propagating({id(weight): path for path, weight in weights.items()})
    with torch.enable_grad():
        with mode:
            logits = model(x.detach())
        torch.autograd.grad(logits, mode.source, F.one_hot(y, logits.shape[1]).to(logits.dtype), allow_unused=True)
    return logits.detach(), mode.found
