"""What int8 costs in accuracy: ResNets on CIFAR-10, 1x4 blocks at 50 %, by calibration and after training on integers.

Launch:    python scripts/accuracy/int8.py --data_path DIR --pretrained_model resnet20-cifar10jpeg.safetensors
Hardware:  any CPU: the quantised file is evaluated with Q/DQ as they are, which is exact where fused integers saturate.
           --subset 5000 --epochs 1 is a short run. Run it again to go on after a stop.
Expected:  calibration within 0.2 points of f32, training on integers within 0.1. Table in JOB_DIR/table.md.
"""

import argparse
import json
from pathlib import Path

import _runs

from kerf import files
from kerf.compress.training.fake_quantised import RATE

LR = 0.02
BLOCKS = ["--method=one_by_n", "--N=4", "--pr_target=0.5"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--pretrained_model", required=True)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--epochs", default="3", help="of fine-tuning in f32")
    parser.add_argument("--qat_epochs", default="1")
    parser.add_argument("--job_dir", type=Path, default=Path("runs/int8"))
    args, passed_on = parser.parse_known_args()  # e.g. --subset 5000
    folder = args.job_dir / args.arch
    common = ["--data_set=cifar10", f"--arch={args.arch}", f"--data_path={args.data_path}", "--train_batch_size=128"]
    common += [f"--lr={LR}", "--lr_policy=cos_step", "--warmup_length=0", *passed_on]
    pruned = folder / "f32" / "checkpoint" / "best.safetensors"
    again = [f"--pretrained_model={pruned}", "--num_epochs=0"]  # its zero blocks are found anew
    first = [f"--pretrained_model={args.pretrained_model}", f"--finetune_epochs={args.epochs}"]
    runs = {
        "f32": [*BLOCKS, "--rearrange", *first],
        "int8, calibrated": [f"--evaluate={pruned}", "--quantise=int8"],
        "f32, trained on": [*BLOCKS, *again, f"--finetune_epochs={args.qat_epochs}", f"--lr={RATE * LR}"],
        "int8, trained on": [
            *BLOCKS,
            *again,
            "--finetune_epochs=0",
            "--quantise=int8",
            f"--qat_epochs={args.qat_epochs}",
        ],
    }
    for name, flags in runs.items():
        if code := _runs.finish(folder_of(folder, name), [*common, *flags]):
            return code
    found = {name: json.loads((folder_of(folder, name) / "summary.json").read_text()) for name in runs}
    print(files.write(folder / "table.md", table(args.arch, found)).read_text())
    return 0


def folder_of(folder: Path, name: str) -> Path:
    return folder / name.replace(", ", "-").replace(" ", "-")


def table(arch: str, found: dict[str, dict]) -> str:
    """Integers against f32 that was trained as long."""
    top1, images = {name: row["top1"] for name, row in found.items()}, found["f32"]["images"]
    lines = [f"{arch}, {images:,} test images; before pruning {found['f32']['top1_dense']:.2f} % top-1.", ""]
    lines += ["| 1x4, 50 % | top-1 | below f32 |", "|-|-|-|"]
    for name, value in top1.items():
        reference = top1["f32, trained on" if "trained on" in name else "f32"]
        lines.append(f"| {name} | {value:.2f} | {reference - value:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("int8", main))
