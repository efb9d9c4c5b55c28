"""An .onnx file -> Network: fused layers with their weights, block-sparse where enough blocks are zero. No TVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kerf.deploy.frontend import clean, refusals, soundness
from kerf.deploy.frontend.network import Layer, Network
from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes import linear, transposed
from kerf.deploy.frontend.passes.fold_affine import fold_affine
from kerf.deploy.frontend.passes.fold_batchnorm import fold_batchnorm
from kerf.deploy.frontend.passes.fuse_layers import fuse_layers
from kerf.deploy.frontend.passes.integer_layers import integer_layers
from kerf.deploy.frontend.passes.integer_sums import integer_sums
from kerf.deploy.frontend.passes.push_dequantise import push_dequantise
from kerf.deploy.frontend.passes.unsigned import unsigned
from kerf.errors import BadInput
from kerf.kernels.bsr import kept_blocks
from kerf.kernels.precision import types_of

NEARLY = 0.03  # share of blocks that those of a larger N may miss


def convert(
    path: Path,
    n: int | Sequence[int] = 4,
    sparsity: float = 0.5,
    batch: int | None = None,
    precision: str = "f32",
    shapes: Mapping[str, Sequence[int]] | None = None,
    integers: bool = True,
) -> Network:
    """Read, fold, fuse, and mark as 1xN each layer, not depthwise, of which a share ``sparsity`` of blocks is zero.

    ``precision``: of layers of floats; ``integers``: whether quantised layers are ones of integers, else of floats.

    Of several N each layer takes the largest that finds nearly all zero blocks. One block of tolerance: a layer pruned
    to floor(share * blocks) counts. A network without any layer that kerf has kernels for is one, too. Raises
    ValueError for n < 1, a share outside [0, 1], and a file that cannot be read.
    """
    ns = sorted((n,) if isinstance(n, int) else n, reverse=True)
    if not ns or ns[-1] < 1:
        given = " ".join(map(str, ns))
        raise BadInput(f"--bsr {given}: a block has at least one row; give the N of the pruning, e.g. 4")
    if not 0 <= sparsity <= 1:
        raise BadInput(f"--sparsity {sparsity}: a share of zero blocks lies between 0 and 1")
    graph = clean.read_graph(path, shapes, batch, runs=True)
    weights_bytes = sum(a.nbytes for a in graph.constants.values())
    layers = layers_of(path, graph, integers)
    floats = {k: v for k, v in layers.items() if not v.problem.x.quantised}
    layers |= {k: replace(v, problem=replace(v.problem, **types_of(precision))) for k, v in floats.items()}
    return Network(path, graph, {k: blocked(v, ns, sparsity) for k, v in layers.items()}, weights_bytes)


def layers_of(path: Path, graph: Graph, integers: bool = True) -> dict[str, Layer]:
    """The layers that kerf has kernels for, in order, put into the cleaned ``graph`` in place of their nodes.

    Raises BadInput for a network in training mode, a scale or zero point that none can be, or a layer that does not fit
    its input.
    """
    with soundness.explained(path):
        refusals.training(path, graph)
        linear.refuse(path, graph)
        fold_batchnorm(graph)
        fold_affine(graph)
        transposed.convolutions(graph)
        if integers:
            unsigned(graph)
            push_dequantise(graph)
        try:
            layers = fuse_layers(graph)
            return integer_sums(graph, integer_layers(graph, layers)) if integers else layers
        except BadInput as error:
            raise BadInput(refusals.wrong_shapes(path, graph) or f"{path}: {error}") from error


def blocked(layer: Layer, ns: Sequence[int], sparsity: float) -> Layer:
    """The layer as 1xN blocks if enough of them are zero, else unchanged.

    N is the first of ``ns`` that loses no more than NEARLY of the zero blocks that another finds: random blocks of
    4 rows make some of 8, too, and kernels of 8 would compute most of what the 4 leave out.
    """
    fitting = []  # (share of zero blocks, N, blocks kept)
    for n in filter(layer.problem.holds_blocks, ns):
        kept = kept_blocks(layer.weight, n)
        zero = int(kept.size - kept.sum())
        if zero and zero + 1 >= sparsity * kept.size:
            fitting.append((zero / kept.size, n, kept.size - zero))
    most = max((share for share, _, _ in fitting), default=0.0)
    for share, n, nnzb in fitting:
        if share >= most - NEARLY:
            return replace(layer, problem=replace(layer.problem, n=n, nnzb=nnzb))
    return layer
