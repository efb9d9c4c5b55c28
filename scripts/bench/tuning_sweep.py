"""How near a search of minutes comes to measuring everything: both on the costliest layers of a network, then a duel.

Launch:    python scripts/bench/tuning_sweep.py --onnx_path MODEL.onnx --minutes 5 --problems 10
Hardware:  2 cores, 15 minutes; as quiet as can be.
Expected:  the search's winners within 3 % of the sweep's. The last table says what the sweep knows about estimates: how
           much the best of the first k configurations of a layer lacks of the best of all, which is what
           kerf.tune.search.FIRST_GAIN and HALF are fitted to.
"""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import choose
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import RecordBook, interval, samples
from kerf.kernels.kernel import dense_twin
from kerf.tune.progress import Progress
from kerf.tune.runners import Entrant, Measurer
from kerf.tune.search import example, search

FIRST = (1, 2, 4, 8, 12, 16, 24, 32, 48)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--onnx_path", type=Path, required=True)
    p.add_argument("--bsr", type=int, default=4)
    p.add_argument("--sparsity", type=float, default=0.5)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--minutes", type=float, default=5)
    p.add_argument("--tolerance", type=float, default=0.005)
    p.add_argument("--problems", type=int, default=10)
    p.add_argument("--folder", type=Path, default=Path("runs/tuning_sweep"))
    a = p.parse_args()
    network = convert(a.onnx_path, a.bsr, a.sparsity)
    target = targets.parse("native", a.threads)
    found, everything = (RecordBook(a.folder / f"{name}.jsonl") for name in ("search", "sweep"))
    s = search(
        network, target, a.threads, found, trials=10**9, minutes=a.minutes, tolerance=a.tolerance, progress=Progress()
    )
    print(f"search: {s.measured} measured in {s.seconds['total']:.0f} s, ended because of: {s.stopped}")

    counts = Counter(layer.problem for layer in network.layers.values())
    if not all(best(found, q, target) for q in counts):
        raise SystemExit(f"--minutes {a.minutes:g}: not every layer was measured once; give the search more")
    us = {q: min(r.us for r in best(found, q, target)) for q in counts}
    costly = sorted(counts, key=lambda q: -counts[q] * us[q])[: a.problems]
    layers = {layer.problem: layer for layer in network.layers.values()}
    part = dataclasses.replace(network, layers={layers[q].name: layers[q] for q in costly})
    s = search(part, target, a.threads, everything, trials=10**9, reach=0, progress=Progress())
    print(f"sweep of {len(costly)} layers: {s.measured} measured in {s.seconds['total']:.0f} s\n")

    print("| layer | block | configurations | search tried | search / sweep | 95 % interval |\n|-|-|-|-|-|-|")
    measurer, ratios = Measurer(target, a.threads), []
    for q in costly:
        layer = layers[q]
        x, residual, truth = example(layer)
        pair = [choose(q, target, book) for book in (found, everything)]
        built = measurer.build([c.prim_func(target) for c in pair])
        entrants = [Entrant(lib, (*c.pack(layer).values(), layer.bias, *residual)) for c, (lib, _) in zip(pair, built)]
        raced = measurer.race(x, entrants, truth, rounds=51, apart=layer.apart).result()
        mine, best_of_all = (samples(r.latency_us, r.cold_us) for r in raced)
        ratios.append(float(np.median(mine / best_of_all)))
        low, high = interval(mine / best_of_all)
        tried = [len({r.what for r in rows(book, q, target)}) for book in (everything, found)]
        print(f"| {q.describe()} | {q.n} | {tried[0]} | {tried[1]} | {ratios[-1]:.3f} | {low:.3f}–{high:.3f} |")
    measurer.close()
    print(f"\ngeometric mean {np.exp(np.mean(np.log(ratios))):.3f}, worst {max(ratios):.3f}\n")

    print("| first k of a kernel | the best of them lacks, mean | at most |\n|-|-|-|")
    for k in FIRST:
        lacking = [lacks(everything, q, target, k) for q in costly]
        print(f"| {k} | {np.mean(lacking):.1%} | {max(lacking):.1%} |")
    return 0


def rows(book: RecordBook, q, target) -> list:
    twins = {p.to_json() for p in (q, dense_twin(q))}
    return [r for p in twins for r in book.of(p, targets.describe(target), provenance())]


def best(book: RecordBook, q, target) -> list:
    return [r for r in rows(book, q, target) if r.latency_us]


def lacks(book: RecordBook, q, target, k: int) -> float:
    """Time of the best of the first k configurations of every kernel, over the best of all, less one."""
    seen: dict[str, list[str]] = {}
    us = {}
    for r in best(book, q, target):
        tried = seen.setdefault(r.problem + r.kernel, [])
        if r.what not in tried:
            tried.append(r.what)
            us[r.problem, r.what] = r.us
    early = [us[key] for key in us if any(key[1] in tried[:k] for tried in seen.values())]
    return min(early) / min(us.values()) - 1


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("tuning_sweep", main))
