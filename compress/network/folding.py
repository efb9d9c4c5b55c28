"""Changes of parameters that move numbers from one layer into another, in place: the function stays, or is told."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import ChannelSet, DependencyGraph
from kerf.compress.network.surgery import Keep, tensor_at
from kerf.compress.network.watching import inputs


@torch.no_grad()
def absorb_constants(
    model: nn.Module, graph: DependencyGraph, keep: Keep, images: Tensor, tolerance: float = 1e-5
) -> dict[str, float]:
    """Moves what dropped channels still contribute into the layers that read them, where that is a constant.

    A channel that is zero is a constant behind a depthwise filter and its batch norm, c = f(β − μγ/σ); then W[:, i] c
    goes to the bias of the reading layer, or off the running mean behind it. Through a kernel with zero-padded borders,
    or where c is not constant, or where the reading layer adds nothing, that is impossible.

    ``images`` (B, C, H, W) shows which values are constant. Returns, for sets where it was impossible, the largest
    |c| that is lost.
    """
    sets = {s.name: s for s in graph.sets}
    readers: dict[str, list[tuple[ChannelSet, Tensor]]] = {}
    for name, kept in keep.items():
        for place in sets[name].reads if not bool(kept.all()) else ():
            readers.setdefault(place[0], []).append((sets[name], sets[name].entries(place, ~kept)))

    def channelwise(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.flatten(0, -2).T if isinstance(layer, nn.Linear) else x.transpose(0, 1).flatten(1)  # (I, n)
        return x.mean(1), x.amax(1) - x.amin(1), x.abs().amax(1)

    owners = {path: path.rpartition(".")[0] for path in readers}
    seen = _observe(model, owners.values(), images, channelwise)
    lost: dict[str, float] = {}
    for path, sources in readers.items():
        module, weight = cast(nn.Conv2d | nn.Linear, model.get_submodule(owners[path])), tensor_at(model, path)
        for channels, gone in sources:
            index = gone.nonzero().flatten().to(weight.device)
            value, spread, largest = (measured[index] for measured in seen[owners[path]])
            if float(value.abs().max()) <= tolerance and float(spread.max()) <= tolerance:
                continue
            unpadded = weight.ndim == 2 or getattr(module, "padding", None) in ((0, 0), (0,), "valid")
            takes = module.bias is not None or path in graph.norms
            takes &= path not in channels.transposed
            if not takes or not unpadded or getattr(module, "groups", 1) > 1 or float(spread.max()) > tolerance:
                lost[channels.name] = max(lost.get(channels.name, 0.0), float(largest.max()))
                continue
            moved = (weight[:, index].flatten(2).sum(2) if weight.ndim > 2 else weight[:, index]) @ value
            if module.bias is not None:
                module.bias += moved
            else:
                _norm(model, graph.norms[path]).running_mean -= moved
    return lost


@torch.no_grad()
def fold_matrix(model: nn.Module, graph: DependencyGraph, path: str, matrix: Tensor) -> None:
    """Replaces a layer and the batch norm behind it by matrix (O, O) times both; the outputs are exactly that.

    K' = M diag(γ/σ) K and b' = M (β + (b − μ)γ/σ): the layer gets K', and the batch norm takes off the mean that its
    outputs have, scales by one and adds M β. Source: Ding et al., ICCV 2021, arXiv 2007.03260, section 3.2. The layer
    must not be grouped, the batch norm has to have γ and β.
    """
    layer = cast(nn.Conv2d | nn.Linear, model.get_submodule(path.rpartition(".")[0]))
    norm = _norm(model, graph.norms[path]) if path in graph.norms else None
    kernel = layer.weight.double()
    bias = layer.bias.double() if layer.bias is not None else kernel.new_zeros(len(kernel))
    if norm is not None:
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        kernel = kernel * scale.view(-1, *[1] * (kernel.ndim - 1))
        mean = (norm.running_mean.double() - bias) * scale
    layer.weight.copy_((matrix @ kernel.flatten(1)).view_as(kernel))
    if norm is None:
        if layer.bias is not None:
            layer.bias.copy_(matrix @ bias)
        return
    # the layer's outputs keep the statistics they have: training that goes on sees the same function
    if layer.bias is not None:
        layer.bias.zero_()
    norm.running_mean.copy_(matrix @ mean)
    norm.running_var.copy_(matrix.square() @ norm.weight.double().square())  # exact for rows with one entry
    norm.weight.copy_((norm.running_var + norm.eps).sqrt())
    norm.bias.copy_(matrix @ norm.bias.double())


@torch.no_grad()
def renormalise(model: nn.Module, norms: Iterable[str], images: Tensor) -> None:
    """Gives batch norms the variances that their inputs really have, with γ to match: the same outputs.

    σ²' = Var x on ``images`` (B, C, H, W), γ' = γ √((σ²' + ε) / (σ² + ε)). After `fold_matrix`, which has to guess σ².
    """
    seen = _observe(model, norms, images, lambda _, x: x.transpose(0, 1).flatten(1).var(1, unbiased=False))
    for path, variance in seen.items():
        norm = _norm(model, path)
        variance = variance.clamp(min=1e-8)  # of a channel that is zero
        norm.weight.mul_(((variance + norm.eps) / (norm.running_var + norm.eps)).sqrt())
        norm.running_var.copy_(variance)


class _Norm(Protocol):
    """A batch norm with γ and β that keeps statistics."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float


def _norm(model: nn.Module, path: str) -> _Norm:
    return cast(_Norm, model.get_submodule(path))


def _observe(
    model: nn.Module, paths: Iterable[str], images: Tensor, measure: Callable[[nn.Module, Tensor], Any]
) -> dict[str, Any]:
    """What `measure` says of each of these modules and its input, when the model evaluates ``images`` (B, C, H, W)."""
    seen: dict[str, Any] = {}

    def see(path: str, module: nn.Module, x: Tensor) -> None:
        seen[path] = measure(module, x)

    inputs(model.eval(), paths, [images], see)
    return seen
