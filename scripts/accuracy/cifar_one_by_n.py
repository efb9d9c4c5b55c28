"""What the 1xN pattern costs in accuracy on real images, beside weight and filter pruning: ResNet-56, CIFAR-10, 50 %.

Launch:    python scripts/accuracy/cifar_one_by_n.py --data_path DIR --pretrained_model resnet56-cifar10jpeg.safetensors
Hardware:  2 CPU cores with bf16, about 2 minutes an epoch, 50 minutes in all. Run it again to go on after a stop:
           variants that are finished are not repeated, and an unfinished one continues from its last epoch.
Expected:  top-1 falls from weight to 1xN, with N, to filter pruning. Table in JOB_DIR/table.md and table.json,
           JOB_DIR/1x4/model.onnx and, raced, its bundle with a report in JOB_DIR/1x4/model.kerf.
"""

import argparse
import json
from pathlib import Path

import _runs

import kerf
from kerf import console, files
from kerf.tune.cli import summary

BLOCKS = ["--conv_type=BlockL1Conv", "--rearrange"]
VARIANTS = {
    "dense": ["--conv_type=DenseConv"],
    "weight": ["--conv_type=UnstructureConv"],
    "1x2": [*BLOCKS, "--N=2"],
    "1x4": [*BLOCKS, "--N=4", "--export_onnx"],
    "1x8": [*BLOCKS, "--N=8"],
    "1x16": [*BLOCKS, "--N=16"],
    "1x16, not rearranged": ["--conv_type=BlockL1Conv", "--N=16"],
    "filter": ["--conv_type=StructureConv"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--pretrained_model", required=True)
    parser.add_argument("--arch", default="resnet56")
    parser.add_argument("--epochs", default="3")
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS], default=[*VARIANTS], metavar="VARIANT")
    parser.add_argument("--job_dir", type=Path, default=Path("runs/cifar_one_by_n"))
    args, passed_on = parser.parse_known_args()  # e.g. --subset 500 --seed 1
    common = ["--data_set=cifar10", f"--arch={args.arch}", "--pr_target=0.5", "--train_batch_size=128", "--lr=0.02"]
    common += ["--lr_policy=cos_step", "--warmup_length=0", f"--finetune_epochs={args.epochs}"]
    common += [f"--data_path={args.data_path}", f"--pretrained_model={args.pretrained_model}", *passed_on]
    rows = []
    for name in dict.fromkeys(["dense", *args.only]):  # losses are against dense
        folder = args.job_dir / name.replace(", ", "-").replace(" ", "-")
        if code := _runs.finish(folder, [*common, *VARIANTS[name]]):
            return code
        rows.append({"variant": name} | json.loads((folder / "summary.json").read_text()))
        write_table(args.job_dir, rows)
    print((args.job_dir / "table.md").read_text())
    if "1x4" not in args.only:
        return 0
    model = args.job_dir / "1x4" / "model.onnx"
    return console.guarded("cifar_one_by_n", lambda: print(summary(kerf.compile(model, n=4, sparsity=0.5, say=print))))


def write_table(folder: Path, rows: list[dict]) -> None:
    lines = [
        f"Untouched network: {rows[0]['top1_dense']:.2f} % top-1 on {rows[0]['images']:,} test images.",
        "",
        "| pruned to 50 % | top-1 before fine-tuning | top-1 | loss of top-1 against dense |",
        "|-|-|-|-|",
    ]
    for row in rows:
        lost = rows[0]["top1"] - row["top1"]
        lines.append(f"| {row['variant']} | {row['top1_pruned']:.2f} | {row['top1']:.2f} | {lost:.2f} |")
    files.write(folder / "table.md", "\n".join(lines) + "\n")
    files.write_json(folder / "table.json", rows)


if __name__ == "__main__":
    raise SystemExit(console.ended("cifar_one_by_n", main))
