"""The window that a convolution or a pooling node moves over an image."""

from __future__ import annotations

from typing import Any, NamedTuple

Pair = tuple[int, int]


class Window(NamedTuple):
    """Rows and columns; ``padding`` is (top, left, bottom, right)."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[int, int, int, int]


def window(attributes: dict[str, Any], kernel: Pair, size: Pair) -> Window:
    """By ONNX's attributes strides, dilations, pads and auto_pad, on an image of ``size``; those of a 1-D window, which
    moves over a row, go through ``of_one_row`` first.
    """
    stride, dilation = tuple(attributes.get("strides", (1, 1))), tuple(attributes.get("dilations", (1, 1)))
    padding = tuple(attributes.get("pads", (0, 0, 0, 0)))
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        padding = _same(size, kernel, stride, dilation, lower=auto == "SAME_LOWER")
    return Window(kernel, stride, dilation, padding)


def of_one_row(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a 1-D window as those of the 2-D one on an image of one row."""
    rows = {"kernel_shape": (1,), "strides": (1,), "dilations": (1,), "pads": (0,)}
    return attributes | {
        name: tuple(number for one in attributes[name] for number in (*row, one))
        for name, row in rows.items()
        if name in attributes
    }


def live(w: Window, size: Pair) -> tuple[Window, tuple[slice, slice]]:
    """The window without the rows and columns that never meet an image of ``size``, only its padding, and which of them
    stay: with dilation 36 a 3 x 3 window on 33 x 33 pixels is its middle.
    """
    ends = zip(w.padding[:2], w.padding[2:], strict=True)
    rows, columns = (_live(*axis) for axis in zip(w.kernel, w.stride, w.dilation, ends, size, strict=True))
    kernel = (rows.stop - rows.start, columns.stop - columns.start)
    before = [w.padding[i] - taps.start * w.dilation[i] for i, taps in enumerate((rows, columns))]
    behind = [w.padding[2 + i] - (w.kernel[i] - taps.stop) * w.dilation[i] for i, taps in enumerate((rows, columns))]
    return w._replace(kernel=kernel, padding=(before[0], before[1], behind[0], behind[1])), (rows, columns)


def _live(taps: int, stride: int, dilation: int, padding: Pair, size: int) -> slice:
    """Of one axis; all taps where what is left of the padding would be negative."""
    before, behind = padding
    out = (size + before + behind - dilation * (taps - 1) - 1) // stride + 1
    met = []
    for tap in range(taps):
        at = tap * dilation - before  # what the first output reads
        first = max(0, -(at // stride))  # of the outputs that read behind the image's begin
        if first < out and at + first * stride < size:
            met.append(tap)
    if not met or before < met[0] * dilation or behind < (taps - 1 - met[-1]) * dilation:
        return slice(0, taps)
    return slice(met[0], met[-1] + 1)


def _same(size: Pair, kernel: Pair, stride: Pair, dilation: Pair, lower: bool) -> tuple[int, int, int, int]:
    """ONNX auto_pad: output = ceil(size / stride), the odd element at the end (or at the start, SAME_LOWER)."""
    begin, end = [], []
    for s, k, t, d in zip(size, kernel, stride, dilation):
        total = max((-(-s // t) - 1) * t + d * (k - 1) + 1 - s, 0)
        small, large = total // 2, total - total // 2
        begin.append(large if lower else small)
        end.append(small if lower else large)
    return begin[0], begin[1], end[0], end[1]
