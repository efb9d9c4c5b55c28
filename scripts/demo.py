"""The main job on embedded images: train, prune to 1x4 blocks at 50 %, export, tune, verify, race, report.

Launch:    make demo          (or: python scripts/demo.py [JOB_DIR])
Hardware:  2 CPU cores, at most 4 minutes.
Expected:  a small MobileNet-V2 on scikit-learn's digits as 32x32 images, test top-1 within a point or two of its dense
           self, the sparse network verified against ONNX Runtime; JOB_DIR/report.html and JOB_DIR/report.json.
"""

import shutil
import sys
from pathlib import Path

import kerf.compress.cli
import kerf.tune.cli


def main(job_dir: str = "runs/demo") -> int:
    folder = Path(job_dir)
    prune = ["--data_set=digits", "--arch=mobilenet_v2_x0_5", "--conv_type=BlockL1Conv", "--N=4", "--pr_target=0.5"]
    prune += ["--rearrange", "--export_onnx", "--num_epochs=6", "--finetune_epochs=4", f"--job_dir={folder}"]
    code = kerf.compress.cli.main(prune)
    if code:
        return code
    onnx, bundle = folder / "model.onnx", folder / "model.kerf"
    build = [f"--onnx_path={onnx}", "--bsr=4", "--sparsity=0.5", "--tune_minutes=0.75", "--seconds=5"]
    code = kerf.tune.cli.main([*build, f"--out={bundle}", f"--records={folder / 'records.jsonl'}"])
    if code:
        return code
    for name in ("report.html", "report.json"):
        shutil.copy(bundle / name, folder / name)
    print(f"\nThe whole story: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
