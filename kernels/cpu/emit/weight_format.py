"""What a weight format gives the loops of a convolution: dense rows or blocks look alike to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol


class Weights(Protocol):
    """A weight format inside the function being built."""

    n: int  # output channels of a block row
    rows: int  # full block rows; out_channels - rows * n channels make one more, short
    parts: int  # threads that share the work

    def declare(self) -> None:
        """Add the format's arrays to the function's parameters."""

    def share(self, k) -> tuple:
        """(begin, end) of thread k's block rows, the short one counted."""

    def reduction(self, block, panel, first_row, rows: int) -> Iterator[tuple[object, Callable]]:
        """Context: loop over a block row's input channels of a panel; yields (channel's offset, w(tap, r or ramp)), r
        of the ``rows`` channels from ``first_row``.

        Offsets are in floats, in steps of what the format was told a channel takes.
        """
