"""Channel pruning on real images: ResNet-56 on CIFAR-10 to 47.1 % of its MACs, every method with the same epochs.

Launch:    python scripts/accuracy/cifar_channels.py --data_path DIR --pretrained_model resnet56-cifar10jpeg.safetensors
Hardware:  2 CPU cores with bf16: 2 to 3 minutes an epoch, 3 hours for 8 epochs of every method. Methods can run at
           once, one process each with --only NAME. Run it again to go on after a stop: finished methods are not
           repeated, unfinished ones continue, but for torch-pruning's, which starts again.
Expected:  base first, then torch-pruning, l1, resrep and ucs, level within chance, a point below; rni last. Table in
           JOB_DIR/table.md and table.json; figures of 12 epochs in docs/benchmarks/.
"""

import argparse
import json
from pathlib import Path

import _runs
import _torch_pruning

from kerf import files

VARIANTS = {
    "base": ["--method=dense"],
    "resrep": ["--method=resrep"],
    "csgd": ["--method=csgd"],
    "rni": ["--method=rni"],
    "slimming": ["--method=slimming"],
    "ucs": ["--method=ucs"],
    "l1": ["--method=l1"],
    "torch-pruning group norm": [],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--pretrained_model", required=True)
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--flops_target", default="0.471")
    parser.add_argument("--only", choices=[*VARIANTS, "dmcp"])
    parser.add_argument("--job_dir", type=Path, default=Path("runs/cifar_channels"))
    args, passed_on = parser.parse_known_args()  # e.g. --subset 500 --seed 1 --set …
    common = ["--data_set=cifar10", "--arch=resnet56", "--train_batch_size=128", "--lr=0.02", "--weight_decay=1e-4"]
    common += ["--lr_policy=cos_step", "--warmup_length=0", f"--finetune_epochs={args.epochs}", "--distill=0.7"]
    common += [f"--data_path={args.data_path}", f"--pretrained_model={args.pretrained_model}", *passed_on]
    for name in [args.only] if args.only else VARIANTS:
        flags = VARIANTS.get(name, [f"--method={name}"])
        folder = args.job_dir / name.replace(" ", "-")
        budget = [] if name == "base" else [f"--flops_target={args.flops_target}"]
        start = None if flags else _torch_pruning.main
        if code := _runs.finish(folder, [*common, *flags, *budget], start):
            return code
    write_table(args.job_dir)
    print((args.job_dir / "table.md").read_text())
    return 0


def write_table(folder: Path) -> None:
    rows = [json.loads(p.read_text()) | {"variant": p.parent.name} for p in folder.glob("*/summary.json")]
    rows.sort(key=lambda row: -row["top1"])
    base = next((row["top1"] for row in rows if row["variant"] == "base"), None)
    lines = [
        f"Untouched network: {rows[0]['top1_dense']:.2f} % top-1 on {rows[0]['images']:,} test images.",
        "",
        "| method | top-1 right after pruning | top-1 | below base | MACs | parameters | seconds |",
        "|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        lost = f"{base - row['top1']:.2f}" if base is not None else ""
        macs, params = row["macs"] / row["macs_dense"], row["params"] / row["params_dense"]
        lines.append(
            f"| {row['variant']} | {row['top1_pruned']:.2f} | {row['top1']:.2f} | {lost} "
            f"| {macs:.3f} | {params:.3f} | {row['seconds']:.0f} |"
        )
    files.write(folder / "table.md", "\n".join(lines) + "\n")
    files.write_json(folder / "table.json", rows)


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("cifar_channels", main))
