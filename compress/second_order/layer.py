"""A layer as least squares sees it: answers t = W x, x the patches that its filters are multiplied with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """How a convolution reads: per spatial axis its kernel, stride, dilation and padding (before, after)."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    mode: str = "constant"  # of the padding, as torch.nn.functional.pad has it

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    def patches(self, x: Tensor, groups: int, lines: Tensor | None) -> Tensor:
        """(B, I, …) -> (groups, d, positions), d = I / groups · taps; of `lines` of the output alone, if given."""
        if any(pad := [n for sides in reversed(self.padding) for n in sides]):
            x = F.pad(x, pad, mode=self.mode)
        for axis, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation), 2):
            x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
            if axis == 2 and lines is not None:
                x = x.index_select(2, lines)
        spatial = len(self.kernel)
        order = (1, *range(2 + spatial, 2 + 2 * spatial), 0, *range(2, 2 + spatial))
        channels = x.shape[1]
        return x.permute(order).reshape(groups, channels // groups * self.taps, -1)


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of a network whose values have names."""

    name: str  # "layer1.0.conv1.weight", or an initialiser's
    reads: str  # the value that is x
    makes: str  # the value that is y, biases and all
    weight: Tensor  # (O, d) of the dense network, inputs outermost in d
    window: Window | None  # None: linear, whose channels are the last axis
    groups: int = 1
    biased: bool = True  # whether a constant can be added to what it answers
    shape: Sequence[int] = field(default=())  # of the weight as it is stored

    @property
    def taps(self) -> int:
        return self.window.taps if self.window else 1

    def inputs(self, x: Tensor, lines: Tensor | None = None) -> Tensor:
        """(groups, d, positions)"""
        if self.window is None:
            x = x.reshape(1, -1, x.shape[-1]) if lines is None else x.flatten(0, -2)[lines][None]
            return x.transpose(1, 2)
        return self.window.patches(x, self.groups, lines)

    def outputs(self, y: Tensor, lines: Tensor | None = None) -> Tensor:
        """(O, positions)"""
        if self.window is None:
            y = y.reshape(-1, y.shape[-1])
            return (y if lines is None else y[lines]).T
        y = y if lines is None else y.index_select(2, lines)
        return y.transpose(0, 1).flatten(1)

    def lines(self, y: Tensor) -> tuple[int, int]:
        """Of an answer: how many lines can be chosen from, and how many positions each has."""
        if self.window is None:
            return y[..., 0].numel(), 1
        return y.shape[2], y.shape[0] * math.prod(y.shape[3:])
