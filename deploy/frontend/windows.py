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
    """By ONNX's attributes strides, dilations, pads and auto_pad, on an image of ``size``."""
    stride, dilation = tuple(attributes.get("strides", (1, 1))), tuple(attributes.get("dilations", (1, 1)))
    padding = tuple(attributes.get("pads", (0, 0, 0, 0)))
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        padding = _same(size, kernel, stride, dilation, lower=auto == "SAME_LOWER")
    return Window(kernel, stride, dilation, padding)


def _same(size: Pair, kernel: Pair, stride: Pair, dilation: Pair, lower: bool) -> tuple[int, int, int, int]:
    """ONNX auto_pad: output = ceil(size / stride), the odd element at the end (or at the start, SAME_LOWER)."""
    begin, end = [], []
    for s, k, t, d in zip(size, kernel, stride, dilation):
        total = max((-(-s // t) - 1) * t + d * (k - 1) + 1 - s, 0)
        small, large = total // 2, total - total // 2
        begin.append(large if lower else small)
        end.append(small if lower else large)
    return begin[0], begin[1], end[0], end[1]
