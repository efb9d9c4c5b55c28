"""Batch norm and dropout over a batch that is spread over processes: as one process computes them on all of it.

Statistics are those of the whole batch, forward and backward, with any backend and uneven parts (torch's SyncBatchNorm
needs GPUs). Dropout draws for the whole batch and takes its part, so every process draws the same numbers as one alone.

While a batch is trained, two functions of torch.nn.functional are exchanged; modules stay what they are. So tracing,
surgery, grafts, state dicts and a method's own batch norm (RNI's, with σ(w) for γ) know nothing of it, which replaced
modules would have to be taught to all of them.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kerf.compress.training import distributed

_batch_norm, _dropout = F.batch_norm, F.dropout


@contextlib.contextmanager
def global_batch(images: int) -> Iterator[None]:
    """Within, modules in training mode act on this process's part of a batch of `images`. Nothing when alone."""
    if distributed.alone():
        yield
        return
    own = distributed.part().of(images)

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training:
            return x
        return x * _dropout(x.new_ones(images, *x.shape[1:]), p)[own]

    setattr(F, "batch_norm", batch_norm)  # noqa: B010  # as statements, types would have to agree name by name
    setattr(F, "dropout", dropout)  # noqa: B010
    try:
        yield
    finally:
        F.batch_norm, F.dropout = _batch_norm, _dropout


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm of this process's images (b, C, …) within the batch of all processes."""
    if not training:
        return _batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, variance, count = _statistics(x.detach())
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
    return _Normalise.apply(x, weight, bias, mean.float(), (variance + eps).rsqrt().float(), count)


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, with a gradient: what every process makes of it flows back to each one's part."""
    return x if distributed.alone() else _Sum.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return distributed.total(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return distributed.total(gradient)


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all processes' (b, C, …): mean and biased variance (C,) f64, and () how many values each is of."""
    variance, mean = torch.var_mean(x.float(), _axes(x), correction=0)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    # Chan et al. 1979: sums of squares about each part's own mean lose no digits, and one exchange is enough
    means, variances, counts = distributed.stacked(torch.cat([mean, variance, count]).double()).split(
        [len(mean), len(mean), 1], dim=1
    )
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


class _Normalise(torch.autograd.Function):
    """y = γ x̂ + β with x̂ = (x − μ) r, where μ and r depend on the x of all processes."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor, count: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, count)
        shape = (1, -1, *[1] * (x.ndim - 2))
        slope = scale if weight is None else scale * weight
        shift = -mean * slope if bias is None else bias - mean * slope
        return torch.addcmul(shift.view(shape), x.float(), slope.view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """∂L/∂x = γ r (g − mean g − x̂ mean(g x̂)), means over all processes; ∂L/∂γ and ∂L/∂β of this one alone.

        Those are summed with all other gradients.
        """
        x, weight, mean, scale, count = ctx.saved_tensors
        shape, axes = (1, -1, *[1] * (x.ndim - 2)), _axes(x)
        g = gradient.float()
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([g.sum(axes), (g * normal).sum(axes)])  # ∂L/∂β, ∂L/∂γ
        shift, along = distributed.total(sums) / count
        slope = scale if weight is None else scale * weight
        dx = (g - shift.view(shape) - normal * along.view(shape)) * slope.view(shape)
        return (
            dx.to(x.dtype),
            None if weight is None else sums[1].to(weight.dtype),
            sums[0] if ctx.needs_input_grad[2] else None,
            None,
            None,
            None,
        )
