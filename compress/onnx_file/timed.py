"""A file's layers share out a time: each loses what costs its answers least for the milliseconds that it saves.

Prices are those of elimination (`second_order/curve.py`), as shares of what a layer's answers vary by, so that layers
are comparable without labels. Source of the use: Frantar and Alistarh, "SPDY", ICML 2022, arXiv 2201.13096.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch

from kerf import files
from kerf.compress.onnx_file.program import Sessions
from kerf.compress.pruning import allocation
from kerf.compress.pruning.allocation import Allocation
from kerf.compress.pruning.price_curves import PriceCurves
from kerf.compress.pruning.sensitivity import GRID
from kerf.compress.second_order.compensation import costs
from kerf.compress.second_order.curve import rise
from kerf.deploy.frontend import sizes
from kerf.deploy.frontend.onnx_graph import Graph, called
from kerf.deploy.frontend.zero_blocks import zero


@dataclass(frozen=True)
class Weights:
    """The networks of `allocation.by_time`, of a file whose ``blocks`` can go: weight -> whether it is stored (I, O).

    ``graph``: cleaned, as it is pruned. Its open sizes become those of ``shapes``, and batches one sample.
    """

    path: Path
    graph: Graph
    blocks: Mapping[str, bool]
    n: int
    shapes: Mapping[str, Sequence[int]]

    def _model(self) -> onnx.ModelProto:
        model = self.graph.model()
        sizes.fix(self.path, model, self.shapes, None)
        return model

    @cached_property
    def layers(self) -> dict[str, str]:
        return {node.input[1]: called(node) for node in self.graph.nodes if len(node.input) > 1 and self._has(node)}

    def _has(self, node: onnx.NodeProto) -> bool:
        return node.input[1] in self.blocks

    @cached_property
    def macs(self) -> dict[str, float]:
        graph = Graph(self._model())
        graph.infer()
        made = {node.input[1]: node.output[0] for node in graph.nodes if len(node.input) > 1 and self._has(node)}
        weights = graph.constants
        rows = {name: weights[name].shape[1 if transposed else 0] for name, transposed in self.blocks.items()}
        return {name: math.prod(graph.shape(made[name])) / rows[name] * weights[name].size for name in self.blocks}

    def write(self, made: Allocation | None, path: Path) -> None:
        model = self._model()
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, share in made.shares.items() if made else ():
            zero(stored[name], self.blocks[name], self.n, share)
        files.write(path, model.SerializeToString())


def prices(
    program: Sessions, batches: Sequence[Any], blocks: Mapping[str, bool], n: int, damping: float
) -> PriceCurves:
    """By how much Var[t − y] / Var[t] of each layer rises with the share of its 1×n blocks that is gone."""
    heights = {layer.name: (n, layer.taps) for layer in program.layers if layer.name in blocks}
    found = costs(
        program, batches, heights, damping,
        lambda _, fit: torch.ones(fit.variance.numel()) / fit.variance.sum().clamp(min=1e-30),
    )  # fmt: skip
    return PriceCurves({name: rise(price, GRID) for name, price in found.items()})


def by_speed(
    networks: Weights, harm: PriceCurves, speedup: float, threads: int, say: Callable[[str], None]
) -> Allocation:
    """Shares with which the built file is `speedup` times as fast as the fastest dense engine, on this machine.

    Raises BadInput, with what is reachable, where that is not met within 5 %.
    """
    from kerf.tune.network_timer import Clock  # TVM takes seconds to load

    clock = Clock((networks.n,), threads=threads)
    return allocation.by_time(networks, {networks.n: harm}, clock, target_ms=None, speedup=speedup, say=say)


def least_sparse() -> float:
    """The share of zero blocks from which sparse kernels are tried where layers differ in theirs."""
    from kerf.tune.network_timer import LEAST_SPARSE

    return LEAST_SPARSE
