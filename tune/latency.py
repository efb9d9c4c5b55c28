"""What each layer of a network would take with a share of its blocks gone: measured, from the records or into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tvm.target import Target

from deploy.build import record
from deploy.convert import Network
from deploy.passes.fuse_layers import Layer
from deploy.record import RecordBook
from kernels.bsr import BSR
from kernels.kernel import dense_twin
from tune.progress import Progress
from tune.search import search

SHARES = (0.25, 0.5, 0.75, 0.9)


def table(
    network: Network,
    layers: Sequence[str],
    n: int,
    target: Target,
    threads: int,
    book: RecordBook,
    shares: Sequence[float] = SHARES,
    progress: Progress | None = None,
) -> dict[str, tuple[float, ...]]:
    """Layer -> microseconds dense, and with each of ``shares`` of its n x 1 blocks zero, whichever kernel is fastest.

    Every kernel's default is measured, unless the book has it: which blocks are gone does not matter, only how many.
    """
    variants = {}
    for name in layers:
        layer = network.layers[name]
        for share in (0.0, *shares):
            variants[f"{name}@{share:g}"] = without(layer, n, share) if share else layer
    search(replace(network, layers=variants), target, threads, book, trials=10**9, tolerance=1.0, progress=progress)
    return {name: tuple(_us(variants[f"{name}@{s:g}"], target, book) for s in (0.0, *shares)) for name in layers}


def without(layer: Layer, n: int, share: float) -> Layer:
    """The layer with that share of its blocks zero, drawn at random."""
    p = layer.problem
    rows = -(-p.out_channels // n)
    kept = np.ones(rows * p.in_channels, bool)
    kept[np.random.default_rng(0).permutation(kept.size)[: round(share * kept.size)]] = False
    mask = np.repeat(kept.reshape(rows, p.in_channels), n, axis=0)[: p.out_channels, :, None, None]
    weight = np.where(mask, np.where(layer.weight == 0, 1e-6, layer.weight), 0).astype(np.float32)
    return replace(layer, weight=weight, problem=replace(p, block=n, nnzb=BSR.from_conv(weight, n).nnzb))


def _us(layer: Layer, target: Target, book: RecordBook) -> float:
    found = [record(p, target, book) for p in {layer.problem, dense_twin(layer.problem)}]
    return min(r.us for r in found if r is not None)
