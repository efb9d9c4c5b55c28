"""Networks tuned from nothing against the same networks untuned, and the dense engines, in one race each.

Launch:    python scripts/tuned_networks.py [--archs ...] [--minutes 5] [--sparsity 0.5]
Hardware:  2 cores, 5 networks in 35 minutes; as quiet as can be.
Expected:  tuned at least as fast as untuned. Weights are random, see bench_networks.py; a second launch takes the
           records of the first and measures nothing: "tuning" is then seconds of building and nothing else.
"""

import argparse
import time
from pathlib import Path

import bench_networks
import numpy as np
import peers

import kerf.tune.cli
from kerf.deploy.measure import bench
from kerf.deploy.runtime import session

ARCHS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet50")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, default=Path("runs/tuned_networks"))
    p.add_argument("--archs", nargs="+", default=ARCHS)
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
    model = bench_networks.network(arch, a.N, a.sparsity, a.folder)[1]
    folder = model.parent
    common = [f"--onnx_path={model}", f"--bsr={a.N}", f"--sparsity={a.sparsity:g}", "--against="]
    common += [f"--threads={a.threads}", f"--target={a.target}", "--seconds=0.1", f"--records={a.folder}/records.jsonl"]
    spent = {}
    for name, flags in {"untuned": ["--trials=0"], "tuned": [f"--tune_minutes={a.minutes:g}"]}.items():
        began = time.monotonic()
        with bench_networks.quiet() as said:
            if kerf.tune.cli.main([*common, *flags, f"--out={folder / name}.kerf"]):
                raise SystemExit(f"{arch}: not built\n{said.getvalue()}")
        spent[name] = time.monotonic() - began
        (folder / f"{name}.log").write_text(said.getvalue())
    x = np.random.default_rng(0).standard_normal((1, 3, bench_networks.SIZE, bench_networks.SIZE)).astype(np.float32)
    engines = [bench.Engine(n, session.load(folder / f"{n}.kerf", a.threads).run) for n in ("untuned", "tuned")]
    dense = [f(model, a.threads) for f in (bench.onnxruntime_engine, bench.openvino_engine)]
    untuned, tuned, *others = bench.race([*engines, *dense], x, seconds=a.seconds, tolerance=1e-3)
    gain, lead = bench.speedup(tuned, [untuned]), bench.speedup(tuned, others)
    cells = [arch, f"{spent['tuned']:.0f}", *(f"{m.median:.3f} ({m.p10:.3f}–{m.p90:.3f})" for m in (untuned, tuned))]
    cells += [f"{gain['median']:.3f}", "{:.3f}–{:.3f}".format(*gain["ci95"]), peers.text(lead)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
