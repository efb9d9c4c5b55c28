"""1xN pruning of an .onnx model by block L1, the same blocks that imagenet.py prunes in torch. numpy and onnx only."""

import numpy as np
import onnx
from onnx import numpy_helper

from kerf.deploy.frontend.onnx_graph import attributes
from kerf.errors import BadInput
from kerf.kernels.bsr import spread

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what mixes channels: behind it is no network input any more


def zero_blocks(model: onnx.ModelProto, n: int, share: float, source: object) -> None:
    """In place, in a cleaned model: the floor(blocks · share) 1xn blocks of least mean |w| of each layer become zero.

    The layers are those that kerf.compress.units.weights.prunable names: convolutions that mix all channels, but for
    those that read the network's input. Raises ValueError, which names ``source``, when there is none.
    """
    tensors = prunable(model.graph)
    if not tensors:
        raise BadInput(f"{source}: no convolution to prune (ungrouped, constant weight, behind the first layer)")
    for tensor in tensors:
        weight = without_least(numpy_helper.to_array(tensor), n, share)
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))


def prunable(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The weights, where they are stored, each once."""
    stored = {t.name: t for t in graph.initializer}
    raw, found = {i.name for i in graph.input} - set(stored), {}  # raw: tensors that are the input, perhaps scaled
    for node in graph.node:  # in topological order
        if node.op_type not in LAYERS and not raw.isdisjoint(node.input):
            raw |= set(node.output)
        if node.op_type != "Conv" or node.input[0] in raw or attributes(node).get("group", 1) > 1:
            continue
        if node.input[1] in stored:
            found[node.input[1]] = stored[node.input[1]]
    return list(found.values())


def without_least(weight: np.ndarray, n: int, share: float) -> np.ndarray:
    """The weight (O, I, *kernel) with the floor(blocks · share) least of its blocks of n kernels zero."""
    starts = np.arange(0, len(weight), n)
    heights = np.diff([*starts, len(weight)])  # the last block row may be short
    size = np.abs(weight, dtype=np.float64).reshape(*weight.shape[:2], -1).sum(axis=2)  # (O, I)
    score = np.add.reduceat(size, starts, axis=0) / heights[:, None]  # (block rows, I)
    kept = np.ones(score.size, bool)
    kept[np.argsort(score, axis=None, kind="stable")[: int(score.size * share + 1e-9)]] = False
    return spread(kept.reshape(score.shape), weight, n)
