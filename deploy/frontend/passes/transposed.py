"""Transposed convolutions as convolutions, one for each phase of the output's pixels, whose results are spread.

Given: ConvTranspose without groups and dilation, of constant weight, stride s down and across, whose output has s times
whole numbers of rows and columns; behind it, perhaps, BatchNormalization and Relu.
Result: Conv of the taps that output rows a, s + a, 2 s + a, ... and columns b, s + b, ... read, for every a and b, with
these behind it, Concat and DepthToSpace; one Conv where all phases read the same pixels. Zero blocks of the weight are
zero blocks of each. Dense engines get the file's own node where they run the network alone (deploy/partition/plain.py).

Dumoulin, Visin, A guide to convolution arithmetic for deep learning, 2016, arXiv 1603.07285, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes, called
from kerf.deploy.frontend.passes.fold_batchnorm import normalising

SPREADS = 11  # opset: since then DepthToSpace says how channels are laid out
MOST = 8  # strides: pixels that kerf spreads


class _Window(NamedTuple):
    """What outputs of one phase of an axis read: ``taps``, indices of the kernel in the order of the pixels, -1 for
    none, and how many pixels before the first and behind the last one are not there.
    """

    taps: tuple[int, ...]
    before: int
    behind: int


class _Behind(NamedTuple):
    """What takes the place of the transposed convolution's: (I, O, kh, kw) and (O,)."""

    nodes: tuple[onnx.NodeProto, ...]
    weight: np.ndarray
    bias: np.ndarray
    relu: bool


def convolutions(graph: Graph) -> None:
    """In place."""
    nodes: list[onnx.NodeProto] = []
    gone: set[int] = set()
    for node in graph.nodes:
        made = _made(graph, node) if node.op_type == "ConvTranspose" and node.domain in STANDARD else None
        if made is None:
            nodes.append(node)
        else:
            behind, new = made
            gone |= {id(n) for n in behind.nodes}
            nodes += new
    if gone:
        graph.set_nodes([n for n in nodes if id(n) not in gone])
        graph.infer()
        graph.is_rewritten = True


def _made(graph: Graph, node: onnx.NodeProto) -> tuple[_Behind, list[onnx.NodeProto]] | None:
    """None where it stays as it is."""
    a, x, y = attributes(node), graph.fixed_shape(node.input[0]), graph.fixed_shape(node.output[0])
    weight = graph.constants.get(node.input[1])
    if x is None or y is None or len(x) != 4 or weight is None or weight.dtype != np.float32 or graph.opset < SPREADS:
        return None
    plain = a.get("group", 1) == 1 and set(a.get("dilations", (1,))) == {1} and not a.get("output_shape")
    (down, across), pads = a.get("strides", (1, 1)), a.get("pads", (0,) * 4)
    if not plain or a.get("auto_pad", b"NOTSET") != b"NOTSET" or down != across or down > MOST or min(pads) < 0:
        return None
    behind = _behind(graph, node, weight)
    axes = [_windows(weight.shape[2 + i], down, pads[i], x[2 + i], y[2 + i]) for i in (0, 1)]
    if behind is None or None in axes:
        return None
    rows, columns = (axis for axis in axes if axis is not None)
    return behind, _convolutions(graph, node, behind, rows, columns)


def _windows(size: int, stride: int, pad: int, inputs: int, outputs: int) -> list[_Window] | None:
    """Of an axis, for every phase; None where phases have unequal numbers of outputs."""
    if outputs % stride:
        return None
    found = []
    for phase in range(stride):
        # output stride * i + phase is the sum of taps t over the pixels i + (phase + pad - t) / stride
        taps = range((phase + pad) % stride, size, stride)
        reads = {(phase + pad - t) // stride: t for t in taps}
        first, last = min(reads, default=0), max(reads, default=0)
        first, last = min(first, 0), max(last, inputs - outputs // stride)
        window = tuple(reads.get(i, -1) for i in range(first, last + 1))
        found.append(_Window(window, -first, outputs // stride - 1 + last - (inputs - 1)))
    return found


def _behind(graph: Graph, node: onnx.NodeProto, weight: np.ndarray) -> _Behind | None:
    """None where the bias is computed."""
    named = node.input[2] if len(node.input) > 2 else ""
    if named and named not in graph.constants:
        return None
    bias = graph.constants[named] if named else np.zeros(weight.shape[1], np.float32)
    nodes = [node]
    norm = graph.sole_consumer(node.output[0])
    if norm is not None and norm.op_type == "BatchNormalization" and not attributes(norm).get("training_mode", 0):
        if any(name not in graph.constants for name in norm.input[1:]) or norm.input[0] != node.output[0]:
            return None
        scale, mean, beta = normalising(graph, norm)
        weight, bias = weight * scale.reshape(1, -1, 1, 1), (bias - mean) * scale + beta
        nodes.append(norm)
    relu = graph.sole_consumer(nodes[-1].output[0])
    if relu is not None and relu.op_type == "Relu":
        nodes.append(relu)
    return _Behind(tuple(nodes), weight.astype(np.float32), bias.astype(np.float32), nodes[-1].op_type == "Relu")


def _convolutions(
    graph: Graph, node: onnx.NodeProto, behind: _Behind, rows: Sequence[_Window], columns: Sequence[_Window]
) -> list[onnx.NodeProto]:
    name, stride, result = called(node), len(rows), behind.nodes[-1].output[0]
    phases = list(product(rows, columns))
    alike = len({(len(r.taps), len(c.taps), r[1:], c[1:]) for r, c in phases}) == 1
    parts = [phases] if alike else [[phase] for phase in phases]
    made, results = [], []
    for i, part in enumerate(parts):
        own = f"{name}.phase{i}" if len(parts) > 1 else name
        (row, column), names = part[0], [f"{own}.weight", f"{own}.bias"]
        graph.note(names[0], np.concatenate([_taps(behind.weight, *phase) for phase in part]))
        graph.note(names[1], np.tile(behind.bias, len(part)))
        pads = [row.before, column.before, row.behind, column.behind]
        results.append(f"{own}.result")
        made.append(helper.make_node("Conv", [node.input[0], *names], [results[-1]], own, pads=pads))
        if behind.relu:
            made.append(helper.make_node("Relu", [results[-1]], [f"{own}.activated"], f"{own}.relu"))
            results[-1] = f"{own}.activated"
    if len(parts) > 1:
        made.append(helper.make_node("Concat", results, [f"{name}.phases"], f"{name}.concat", axis=1))
        results = [f"{name}.phases"]
    if stride > 1:
        named = f"{name}.spread"
        made.append(helper.make_node("DepthToSpace", results, [result], named, blocksize=stride, mode="DCR"))
    else:
        made[-1].output[0] = result
    return made


def _taps(weight: np.ndarray, rows: _Window, columns: _Window) -> np.ndarray:
    """(O, I, taps down, taps across) of a phase."""
    padded = np.pad(weight, ((0, 0), (0, 0), (0, 1), (0, 1)))  # tap -1 is 0
    return np.ascontiguousarray(padded[:, :, list(rows.taps)][..., list(columns.taps)].swapaxes(0, 1))
