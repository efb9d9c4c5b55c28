"""How long networks take on this machine, and what each layer would take with a share of its blocks gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from kerf import temporary
from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import record
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.network import Layer
from kerf.deploy.measure.record import RecordBook
from kerf.errors import BadInput, Mismatch
from kerf.kernels.bsr import BSR, spread
from kerf.kernels.kernel import dense_twin
from kerf.tune.pipeline import compile
from kerf.tune.request import RECORDS
from kerf.tune.search import search

SHARES = (0.25, 0.5, 0.75, 0.9)
LEAST_SPARSE = 0.15  # share of zero blocks from which sparse kernels win, a little before (scripts/bench/break_even.py)


@dataclass(frozen=True)
class Clock:
    """Measures with blocks of ``n`` rows on ``target``; what of it is in ``records`` is not measured again."""

    n: Sequence[int]
    target: str = "native"
    threads: int = 1
    records: Path = RECORDS
    shares: ClassVar[tuple[float, ...]] = SHARES

    def network_ms(self, path: Path, seconds: float = 5.0) -> tuple[float, float, str]:
        """(kerf's latency, the fastest dense engine's, its name) for an .onnx file, raced. Raises ValueError."""
        with temporary.folder("clock") as folder:
            try:
                bundle = compile(
                    path, folder / "bundle", n=self.n, sparsity=LEAST_SPARSE, target=self.target,
                    threads=self.threads, trials=0, seconds=seconds,
                )  # fmt: skip
            except Mismatch as error:
                raise BadInput(str(error)) from error
        if not bundle.verified:
            raise BadInput(f"--target {self.target}: this machine cannot run it, so nothing can be timed")
        dense = {name: ms for name, ms in bundle.latency_ms.items() if name != "kerf"}
        fastest = min(dense, key=lambda name: dense[name])
        return bundle.latency_ms["kerf"], dense[fastest], fastest

    def layers_us(self, path: Path, layers: Sequence[str], n: int) -> dict[str, tuple[float, ...]]:
        """Layer -> microseconds dense, and with each of SHARES of its n x 1 blocks zero, whichever kernel is fastest.

        Which blocks are gone does not matter, only how many; layers that the file has fused away are left out.
        """
        network, target = convert(path, n, 1.0), targets.parse(self.target, self.threads)
        book = RecordBook(self.records)
        found = [name for name in layers if name in network.layers]
        variants = {
            (name, share): without(network.layers[name], n, share) for name in found for share in (0.0, *SHARES)
        }
        named = {f"{name}@{share:g}": layer for (name, share), layer in variants.items()}
        search(replace(network, layers=named), target, self.threads, book, trials=10**9, tolerance=1.0)

        def us(layer: Layer) -> float:
            twins = [record(p, target, book) for p in {layer.problem, dense_twin(layer.problem)}]
            return min(r.us for r in twins if r is not None)

        return {name: tuple(us(variants[name, share]) for share in (0.0, *SHARES)) for name in found}


def without(layer: Layer, n: int, share: float) -> Layer:
    """The layer with that share of its blocks zero, drawn at random."""
    p = layer.problem
    rows = -(-p.out_channels // n)
    kept = np.ones(rows * p.in_channels, bool)
    kept[np.random.default_rng(0).permutation(kept.size)[: round(share * kept.size)]] = False
    if kept.all():
        return layer
    full = np.where(layer.weight == 0, np.float32(1e-6), layer.weight)
    weight = spread(kept.reshape(rows, p.in_channels), full, n)
    return replace(layer, weight=weight, problem=replace(p, n=n, nnzb=BSR.from_conv(weight, n).nnzb))
