"""Every method of the table on real images: ResNet-20, CIFAR-10, 50 % and 70 % of each method's own unit, same epochs.

Launch:    python scripts/accuracy/cifar_methods.py --data_path DIR --pretrained_model resnet20-cifar10jpeg.safetensors
Hardware:  2 CPU cores with bf16: 30 to 50 seconds an epoch; 2 epochs of 36 methods at two rates take 3 hours.
           Run it again to go on after a stop, with --only NAME to add or finish methods: finished runs stay.
Expected:  table.md, table.json and a picture for each rate, accuracy against MACs and against ms, in JOB_DIR; short
           runs, in docs/benchmarks/. Milliseconds are measured at the end, all networks and the dense engines on the
           untouched network in interleaved rounds of one process, each compared with ONNX Runtime first.
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import _picture
import _race
import _runs

from kerf import files
from kerf.compress.methods import METHODS
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Granularity, OneByN, Patterns, Weight

RATES = (0.5, 0.7)
BLOCK = 4  # N of 1×N
OWN = {"drl": ["--set", "size=1", "episodes=100", "images=1000"]}  # its defaults take a day; f32, so that kerf runs it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--pretrained_model", required=True)
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--only", nargs="*", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--job_dir", type=Path, default=Path("runs/cifar_methods"))
    parser.add_argument("--seconds", type=float, default=120, help="length of the race at the end; 0: none")
    a, passed_on = parser.parse_known_args()  # e.g. --subset 500 --seed 1 --set …
    common = ["--data_set=cifar10", "--arch=resnet20", "--train_batch_size=128", "--lr=0.02", "--weight_decay=1e-4"]
    common += ["--lr_policy=cos_step", "--warmup_length=0", f"--finetune_epochs={a.epochs}", "--export_onnx"]
    common += [f"--data_path={a.data_path}", f"--pretrained_model={a.pretrained_model}", f"--N={BLOCK}", *passed_on]
    for rate in a.rates:
        for name in a.only:
            train(a.job_dir, name, rate, common)
            write_table(a.job_dir)
    if not [*finished(a.job_dir)]:
        raise SystemExit(f"{a.job_dir}: no method finished; what each said is in its refused.txt")
    if a.seconds:
        _race.race(a.job_dir, {name: rows_of_block(name) for name in METHODS}, a.seconds)
        write_table(a.job_dir)
    print((a.job_dir / "table.md").read_text())
    return 0


def train(folder: Path, name: str, rate: float, common: list[str]) -> None:
    """Finishes this run; what a method refuses goes to refused.txt beside where its summary would be."""
    if name == "dense":  # the untouched network's epochs, once
        folder, budget = folder / "dense", []
    else:
        folder, budget = folder / f"{name}-{rate:g}", [f"--pr_target={rate:g}"]
        if METHODS[name].target == "macs":
            budget = [f"--flops_target={1 - rate:g}"]
    own = ["--rearrange"] if isinstance(granularity(name), OneByN) else OWN.get(name, [])
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = _runs.finish(folder, [*common, f"--method={name}", *own, *budget])
    if code == 130:
        raise KeyboardInterrupt
    if code:
        print(f"{name} at {rate:g}: {said.getvalue().strip()}", file=sys.stderr)
        files.write(folder / "refused.txt", said.getvalue())
    else:
        (folder / "refused.txt").unlink(missing_ok=True)


def rows_of_block(name: str) -> int:
    """Height of the zero blocks that a method leaves: 1 where single weights go."""
    return 1 if isinstance(granularity(name), Weight | Patterns) else BLOCK


def granularity(name: str) -> Granularity:
    return METHODS[name](Settings(by_macs=True)).granularity


def finished(folder: Path) -> list[tuple[Path, dict]]:
    return [(path.parent, json.loads(path.read_text())) for path in sorted(folder.glob("*/summary.json"))]


def write_table(folder: Path) -> None:
    """table.md, table.json and pictures of what is finished; milliseconds if those were raced."""
    times = json.loads((folder / "race.json").read_text()) if (folder / "race.json").is_file() else {}
    rows = [rows_for(path, summary, times) for path, summary in finished(folder)]
    rows.sort(key=lambda row: (row["rate"] or 0, -row["top1"]))
    if not rows:
        return
    lines = [
        f"Untouched network: {rows[0]['top1_dense']:.2f} % top-1 on {rows[0]['images']:,} test images.",
        "",
        "| removed | method | of its | top-1 right after pruning | top-1 | MACs | parameters | kerf ms | faster dense "
        "engine on the untouched network / kerf | 95 % interval | minutes |",
        "|-|-|-|-|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        removed = f"{row['rate']:.0%}" if row["rate"] else "–"
        timed = ["–"] * 3
        if row["ms"]:
            timed = [f"{row['ms']:.3f}", f"{row['speedup']:.2f}", "{:.2f}–{:.2f}".format(*row["ci95"])]
        cells = [removed, row["method"], row["unit"], f"{row['top1_pruned']:.2f}", f"{row['top1']:.2f}"]
        cells += [f"{row['macs']:.3f}", f"{row['params']:.3f}", *timed]
        lines.append(f"| {' | '.join(cells)} | {row['minutes']:.1f} |")
    refused = [(p.parent.name, p.read_text().strip()) for p in sorted(folder.glob("*/refused.txt"))]
    lines += ["", *(f"Refused: {name}: {reason}" for name, reason in refused)]
    files.write(folder / "table.md", "\n".join(lines).rstrip() + "\n")
    files.write_json(folder / "table.json", rows)
    for rate in sorted({row["rate"] for row in rows if row["rate"]}):
        shown = [row for row in rows if row["rate"] in (rate, None)]
        files.write(folder / f"methods-{100 * rate:.0f}.svg", _picture.picture(shown, rate))


def rows_for(path: Path, summary: dict, times: dict) -> dict:
    name, timed = summary["method"], times.get(path.name, {})
    return {
        "method": name,
        "rate": None if name == "dense" else round(summary["pr_target"] or 1 - summary["flops_target"], 6),
        "unit": unit(name),
        "top1_dense": summary["top1_dense"],
        "top1_pruned": summary["top1_pruned"],
        "top1": summary["top1"],
        "images": summary["images"],
        "macs": summary["macs"] / summary["macs_dense"],
        "params": summary["params"] / summary["params_dense"],
        "ms": timed.get("ms"),
        "speedup": timed.get("speedup"),
        "ci95": timed.get("ci95"),
        "minutes": summary["seconds"] / 60,
    }


def unit(name: str) -> str:
    if name == "dense":
        return "–"
    if METHODS[name].target == "macs":
        return "MACs"
    return METHODS[name].removes.replace("1xN", f"1×{BLOCK}")


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("cifar_methods", main))
