"""Networks tuned from nothing against the same networks untuned, and the dense engines, in one race each.

Launch:    python scripts/bench/tuned_networks.py [--archs ...] [--minutes 5] [--sparsity 0.5]
Hardware:  2 cores, 5 networks in 35 minutes; as quiet as can be.
Expected:  tuned at least as fast as untuned. Weights are random, see kerf.zoo; a second launch takes the
           records of the first and measures nothing: "tuning" is then seconds of building and nothing else.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import kerf
from kerf import files, zoo
from kerf.deploy.measure import bench, peers
from kerf.deploy.runtime import session


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, default=Path("runs/tuned_networks"))
    p.add_argument("--archs", nargs="+", default=zoo.ARCHS)
    p.add_argument("--sparsity", type=float, default=0.5)
    p.add_argument("--N", type=int, default=4)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--minutes", type=float, default=5)
    p.add_argument("--target", default="native")
    p.add_argument("--seconds", type=float, default=20, help="length of each race")
    a = p.parse_args()
    print("| network | tuning, s | untuned ms | tuned ms | untuned / tuned | 95 % interval ", end="")
    print("| faster dense engine / tuned | 95 % interval |\n|-|-|-|-|-|-|-|-|", flush=True)
    for arch in a.archs:
        print(row(arch, a), flush=True)
    return 0


def row(arch: str, a: argparse.Namespace) -> str:
    model = zoo.network(arch, a.N, a.sparsity, a.folder)[1]
    folder = model.parent
    spent = {}
    for name, trials in (("untuned", 0), ("tuned", 1000)):
        began, said = time.monotonic(), []
        kerf.compile(
            model, folder / f"{name}.kerf", n=a.N, sparsity=a.sparsity, target=a.target, threads=a.threads,
            trials=trials, minutes=a.minutes if trials else None, records=a.folder / "records.jsonl", against=(),
            seconds=0.1, say=said.append,
        )  # fmt: skip
        spent[name] = time.monotonic() - began
        files.write(folder / f"{name}.log", "\n".join(said) + "\n")
    x = np.random.default_rng(0).standard_normal((1, 3, zoo.SIZE, zoo.SIZE)).astype(np.float32)
    engines = [bench.Engine(n, session.load(folder / f"{n}.kerf", a.threads).run) for n in ("untuned", "tuned")]
    dense = [f(model, a.threads) for f in (bench.onnxruntime_engine, bench.openvino_engine)]
    untuned, tuned, *others = bench.race([*engines, *dense], x, seconds=a.seconds, tolerance=1e-3)
    gain, lead = bench.speedup(tuned, [untuned]), bench.speedup(tuned, others)
    cells = [arch, f"{spent['tuned']:.0f}", *(f"{m.median:.3f} ({m.p10:.3f}–{m.p90:.3f})" for m in (untuned, tuned))]
    cells += [f"{gain['median']:.3f}", "{:.3f}–{:.3f}".format(*gain["ci95"]), peers.text(lead)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("tuned_networks", main))
