"""Writes deploy/pretuned/*.jsonl from the records of tuned_networks.py, whose networks are tuned if they are not yet.

Launch:    python scripts/maintain/pretune.py [--int8] [--target x86-64-v3] [--minutes 3] [--archs ...] ...
Hardware:  2 cores, quiet; a quarter of an hour for five networks.
Expected:  a file of some dozens of lines: most layers are best by their kernel's own first configuration, which is not
           written.
"""

import argparse
import json
from pathlib import Path

from kerf import files, zoo
from kerf.deploy.compiler import pretuned, targets
from kerf.deploy.compiler.choice import ways
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.tune.progress import Progress
from kerf.tune.search import search
from kerf.tune.whole_network import better


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, default=Path("runs/tuned_networks"))
    p.add_argument("--archs", nargs="+", default=zoo.ARCHS)
    p.add_argument("--sparsities", nargs="+", type=float, default=(0.5,))
    p.add_argument("--N", type=int, default=4)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--minutes", type=float, default=3)
    p.add_argument("--target", default="native")
    p.add_argument("--int8", action="store_true", help="the same networks on integers")
    a = p.parse_args()
    target, book = targets.parse(a.target, a.threads), RecordBook(a.folder / "records.jsonl")
    path = pretuned.file_of(target)
    if path is None:
        raise SystemExit(f"{a.target}: no file for such vector registers; see kerf.kernels.cpu.machine.Machine.family")
    rows = {problem_of(line): line for line in path.read_text().splitlines()} if path.exists() else {}
    for arch in a.archs:
        for sparsity in a.sparsities:
            model = zoo.network(arch, a.N, sparsity, a.folder)[1]
            model = zoo.integers(model) if a.int8 else model
            network = convert(model, a.N, max(sparsity, 0.01))
            s = search(
                network, target, a.threads, book, trials=10**9, minutes=a.minutes, tolerance=0.005, progress=Progress()
            )
            choices = better(network, target, a.threads, book)[0].choices
            print(f"{arch} at {sparsity:.0%}: {s.measured} measured, {s.before_us:.0f} -> {s.after_us:.0f} us")
            for name, layer in network.layers.items():
                q, choice = layer.problem, choices[name]
                line = pretuned.line(q, choice, target)
                rows.pop(problem_of(line), None)
                if choice != ways(q, target)[0][0]:
                    rows[problem_of(line)] = line
    files.write(path, "".join(f"{line}\n" for line in sorted(rows.values())))
    print(f"{path}: {len(rows)} lines, {path.stat().st_size} bytes")
    return 0


def problem_of(line: str) -> str:
    row = json.loads(line)
    return json.dumps([row["problem"], row["threads"]])


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("pretune", main))
