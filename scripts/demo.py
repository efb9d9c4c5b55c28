"""The main job on embedded images: train, prune to 1x4 blocks at 50 %, export, tune, verify, race, report.

Launch:    make demo          (or: python scripts/demo.py [JOB_DIR])
Hardware:  2 CPU cores, at most 4 minutes.
Expected:  a small MobileNet-V2 on scikit-learn's digits as 32x32 images, test top-1 within a point or two of its dense
           self, the sparse network verified against ONNX Runtime; JOB_DIR/report.html and JOB_DIR/report.json.
"""

import argparse
import shutil
from pathlib import Path

import kerf.compress.cli
from kerf import console
from kerf.tune.cli import summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job_dir", type=Path, nargs="?", default=Path("runs/demo"))
    folder = parser.parse_args().job_dir
    prune = ["--data_set=digits", "--arch=mobilenet_v2_x0_5", "--conv_type=BlockL1Conv", "--N=4", "--pr_target=0.5"]
    prune += ["--rearrange", "--export_onnx", "--num_epochs=6", "--finetune_epochs=4", f"--job_dir={folder}"]
    return kerf.compress.cli.main(prune) or console.guarded("demo", lambda: compiled(folder))


def compiled(folder: Path) -> None:
    bundle = kerf.compile(
        folder / "model.onnx", n=4, sparsity=0.5, minutes=0.75, seconds=5, records=folder / "records.jsonl", say=print
    )
    print(summary(bundle))
    for name in ("report.html", "report.json"):
        shutil.copy(bundle.path / name, folder / name)
    print(f"\nThe whole story: {folder / 'report.html'}")


if __name__ == "__main__":
    raise SystemExit(main())
