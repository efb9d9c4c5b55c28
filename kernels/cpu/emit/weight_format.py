"""What a weight format gives the loops of a convolution: dense rows or blocks look alike to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Weights(Protocol):
    """A weight format inside the function being built."""

    n: int  # output channels of a block row
    rows: int  # full block rows; out_channels - rows * n channels make one more, short
    parts: int  # threads that share the work

    def declare(self) -> None:
        """Add the format's arrays to the function's parameters."""

    def share(self, k) -> tuple[Any, Any]:
        """(begin, end) of thread k's block rows, the short one counted."""

    def reductions(self, block, panel, first_row, rows: int) -> list[AbstractContextManager[Step]]:
        """Contexts, to be entered one after the other: loops which together are over a block row's input channels of a
        panel, and what a turn of each reads of the ``rows`` output channels from ``first_row``.
        """


class Step(NamedTuple):
    """A turn of a loop over input channels. Offsets are in floats: the format was told what a channel takes."""

    offset: Any  # of the input channel
    weight: Callable[[Any, Any], Any]  # of a tap and an output channel, or a ramp of them, counted from the first row
    later: Callable[[], Any]  # emits the offset of the channel that comes next; behind the last, of any


@dataclass(frozen=True)
class Rows:
    """``count`` output channels of block row ``block``, from its ``first``: what a register tile holds."""

    block: Any
    first: Any
    count: int

    def channel(self, weights: Weights):
        """The first one's number in the layer."""
        return self.block * weights.n + self.first
