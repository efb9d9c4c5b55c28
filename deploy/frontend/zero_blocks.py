"""1xN pruning of an .onnx model by block L1, the same blocks that imagenet.py prunes in torch. numpy and onnx only."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from kerf.deploy.frontend.onnx_graph import attributes
from kerf.errors import BadInput
from kerf.kernels.bsr import spread
from kerf.kernels.problem import holds_blocks

LINEAR = ("Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what mixes channels: behind it is no network input any more


def zero_blocks(
    model: onnx.ModelProto, n: int, share: float, source: object, layers: Collection[str] = ("Conv",)
) -> None:
    """In place, in a cleaned model: the floor(blocks · share) 1xn blocks of least mean |w| of each layer become zero.

    ``layers``: names of ONNX operators, of CONVOLUTIONS and LINEAR. Of convolutions those are pruned that
    kerf.compress.units.weights.prunable names, which mix channels and do not read the network's input; of linear
    layers those behind a first one whose result is no output of the network, as a classifier's is. Raises ValueError,
    which names ``source``, when there is none, and for an operator without blocks.
    """
    if unknown := set(layers) - {*CONVOLUTIONS, *LINEAR}:
        known = f"{', '.join((*CONVOLUTIONS, LINEAR[0]))} or {LINEAR[1]}"
        raise BadInput(f"{source}: no blocks in {', '.join(sorted(unknown))}; expected {known}")
    weights = prunable(model.graph, n, layers)
    if not weights:
        what = "convolution" if set(layers) <= set(CONVOLUTIONS) else "layer"
        raise BadInput(f"{source}: no {what} to prune (not depthwise, constant weight, behind the first layer)")
    for tensor, transposed in weights:
        zero(tensor, transposed, n, share)


def zero(tensor: onnx.TensorProto, transposed: bool, n: int, share: float) -> None:
    """In place: `without_least` of a stored weight, (I, O, *kernel) where ``transposed``."""
    weight = numpy_helper.to_array(tensor)
    pruned = without_least(weight.swapaxes(0, 1) if transposed else weight, n, share)
    pruned = pruned.swapaxes(0, 1) if transposed else pruned
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(pruned), tensor.name))


def prunable(
    graph: onnx.GraphProto, n: int, layers: Collection[str] = ("Conv",)
) -> list[tuple[onnx.TensorProto, bool]]:
    """The weights, where they are stored, each once, and whether they are stored as (I, O, *kernel).

    Of grouped convolutions those whose groups 1xn blocks fill.
    """
    stored = {t.name: t for t in graph.initializer}
    raw = {i.name for i in graph.input} - set(stored)  # tensors that are the input, perhaps scaled
    found: dict[str, tuple[onnx.TensorProto, bool]] = {}
    ends = _ends(graph)
    for node in graph.node:  # in topological order
        if node.op_type not in LAYERS and not raw.isdisjoint(node.input):
            raw |= set(node.output)
        if node.op_type not in layers or node.input[0] in raw or node.input[1] not in stored:
            continue
        given, weight = attributes(node), stored[node.input[1]]
        if node.op_type == "Conv":
            groups, (outputs, inputs) = given.get("group", 1), weight.dims[:2]
            if holds_blocks(outputs, inputs, groups, n):
                found[node.input[1]] = weight, False
        elif node.op_type == "ConvTranspose":
            if given.get("group", 1) == 1:
                found[node.input[1]] = weight, True
        elif len(weight.dims) == 2 and node.output[0] not in ends:
            found[node.input[1]] = weight, not given.get("transB", 0)
    return list(found.values())


def _ends(graph: onnx.GraphProto) -> set[str]:
    """Tensors that become an output of the network without another layer."""
    ends = {o.name for o in graph.output}
    for node in reversed(graph.node):
        if node.op_type not in LAYERS and not ends.isdisjoint(node.output):
            ends |= set(node.input)
    return ends


def without_least(weight: np.ndarray, n: int, share: float) -> np.ndarray:
    """The weight (O, I, *kernel) with the floor(blocks · share) least of its blocks of n kernels zero."""
    starts = np.arange(0, len(weight), n)
    heights = np.diff([*starts, len(weight)])  # the last block row may be short
    size = np.abs(weight, dtype=np.float64).reshape(*weight.shape[:2], -1).sum(axis=2)  # (O, I)
    score = np.add.reduceat(size, starts, axis=0) / heights[:, None]  # (block rows, I)
    kept = np.ones(score.size, bool)
    kept[np.argsort(score, axis=None, kind="stable")[: int(score.size * share + 1e-9)]] = False
    return spread(kept.reshape(score.shape), weight, n)
