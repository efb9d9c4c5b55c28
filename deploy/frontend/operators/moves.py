"""Nodes that move pixels: some channels, channels in another order, images enlarged."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import Graph, attributes
from kerf.deploy.frontend.operators.operation import (
    Operation,
    Refusal,
    constant,
    image_of,
    only_output,
    shape_of,
)
from kerf.kernels.form import Order


def split(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Over channels."""
    _, c, _, _ = image_of(graph, node.input[0], integers=True)
    if (axis := attributes(node).get("axis", 0) % 4) != 1:
        raise Refusal(f"a split over axis {axis}; kerf's is over channels, 1")
    shapes = [image_of(graph, name, integers=True) for name in node.output]
    counts = [shape[1] for shape in shapes]
    if sum(counts) != c:
        raise Refusal(f"parts of {counts} channels of {c}")
    orders = [Order(sum(counts[:i]), count, 1, 0) for i, count in enumerate(counts)]
    return Operation("planes", (node.input[0],), tuple(shapes), {"orders": orders})


def slice_channels(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Of channels alone, forwards."""
    shape = image_of(graph, node.input[0], integers=True)
    out = image_of(graph, only_output(node), integers=True)
    starts, _, axes, steps = (constant(graph, node, i) for i in range(1, 5))
    if starts is None:
        raise Refusal("a slice by attributes, as before opset 10")
    named = range(len(starts)) if axes is None else [int(a) % 4 for a in axes]
    begin = dict(zip(named, map(int, starts)))
    by = dict(zip(named, map(int, steps if steps is not None else [1] * len(begin))))
    if any(out[i] != shape[i] for i in (0, 2, 3)) or any(step < 1 for step in by.values()):
        raise Refusal(f"a slice of {shape} to {out}; kerf's takes channels")
    first = begin.get(1, 0)
    first = max(first + shape[1], 0) if first < 0 else first
    return Operation("planes", (node.input[0],), (out,), {"orders": [Order(first, out[1], by.get(1, 1), 0)]})


def transpose(graph: Graph, node: onnx.NodeProto) -> Operation:
    """(n, g, k, h, w) to (n, k, g, h, w): the middle of a channel shuffle."""
    shape, order = shape_of(graph, node.input[0], integers=True), tuple(attributes(node).get("perm", ()))
    if order != (0, 2, 1, 3, 4):
        raise Refusal(f"a transposition to {order or 'the reverse'}")
    out = shape_of(graph, only_output(node), integers=True)
    return Operation("planes", (node.input[0],), (out,), {"orders": [Order(0, shape[1], shape[2], 1)]})


def depth_to_space(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Channels that become pixels: a pixel shuffle."""
    image_of(graph, node.input[0], integers=True)
    a, out = attributes(node), image_of(graph, only_output(node), integers=True)
    factor = a["blocksize"]
    if factor > 8:
        raise Refusal(f"blocks of {factor}x{factor} pixels; kerf's have up to 8x8")
    steps = (1, out[1]) if a.get("mode", b"DCR") == b"DCR" else (factor**2, 1)
    return Operation("spread", (node.input[0],), (out,), {"factor": factor, "steps": steps})


def resize(graph: Graph, node: onnx.NodeProto) -> Operation:
    """Enlarged: by whole numbers, each pixel repeated, or by any, between pixels linearly."""
    shape, a = image_of(graph, node.input[0], integers=True), attributes(node)
    out = image_of(graph, only_output(node), integers=True)
    if a.get("mode", b"nearest") == b"linear":
        return _linear(graph, node, shape, out)
    if a.get("mode", b"nearest") != b"nearest":
        raise Refusal(f"it interpolates ({a['mode'].decode()}); kerf repeats pixels, or takes linear")
    factors = out[2] // shape[2], out[3] // shape[3]
    if out != (*shape[:2], shape[2] * factors[0], shape[3] * factors[1]) or max(factors) > 8 or min(factors) < 1:
        raise Refusal(f"{shape} resized to {out}; kerf enlarges by whole numbers up to 8")
    where = a.get("coordinate_transformation_mode", b"asymmetric" if node.op_type == "Upsample" else b"half_pixel")
    rounds = a.get("nearest_mode", b"floor" if node.op_type == "Upsample" else b"round_prefer_floor")
    if any(_sources(factor, where.decode(), rounds.decode()) for factor in factors):
        raise Refusal(f"nearest pixels by {where.decode()} and {rounds.decode()}")
    return Operation("enlarge", (node.input[0],), (out,), {"factors": factors})


def _linear(graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...], out: tuple[int, ...]) -> Operation:
    a = attributes(node)
    old = node.op_type == "Upsample" or graph.opset < 11
    where = a.get("coordinate_transformation_mode", b"asymmetric" if old else b"half_pixel")
    image_of(graph, node.input[0])  # of floats
    if out[:2] != shape[:2] or out[2] < shape[2] or out[3] < shape[3]:
        raise Refusal(f"{shape} interpolated to {out}; kerf enlarges height and width")
    if a.get("antialias", 0) or "axes" in a or a.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise Refusal("with antialias, axes or a policy for the aspect ratio")
    scales = constant(graph, node, 1 if node.op_type == "Upsample" or len(node.input) == 2 else 2)
    factors = scales if scales is not None and scales.size == 4 else np.divide(out, shape)
    places = [_places(where.decode(), *axis) for axis in zip(shape[2:], out[2:], factors[2:])]
    return Operation("interpolate", (node.input[0],), (out,), {"rows": places[0], "columns": places[1]})


def _places(where: str, size: int, out: int, factor: float) -> np.ndarray:
    """Where the pixels of an enlarged row lie on the row, in pixels from the first one's middle (ONNX's Resize)."""
    x = np.arange(out)
    if where == "half_pixel" or (where == "pytorch_half_pixel" and out > 1):
        return (x + 0.5) / factor - 0.5
    if where == "asymmetric":
        return x / factor
    if where == "align_corners":
        return x * ((size - 1) / max(out - 1, 1))
    raise Refusal(f"linear interpolation by {where}")


def _sources(factor: int, where: str, rounds: str) -> bool:
    """Whether a row enlarged so holds anything but each pixel ``factor`` times."""
    x = np.arange(4 * factor)
    known: dict[str, Callable] = {"floor": np.floor, "round_prefer_floor": lambda v: np.ceil(v - 0.5), "ceil": np.ceil}
    at, how = {"asymmetric": x / factor, "half_pixel": (x + 0.5) / factor - 0.5}.get(where), known.get(rounds)
    return at is None or how is None or list(np.clip(how(at), 0, 3)) != [math.floor(i / factor) for i in x]
