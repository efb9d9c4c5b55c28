"""MobileNet-V2 and ResNet-50 at 224x224, 1x4 blocks at 50 %, tuned, against the dense engines on one thread.

Launch:    make bench         (or: python scripts/bench_224.py [FOLDER])
Hardware:  any x86-64 with AVX2; 2 cores, 8 minutes. Quiet machines give narrow intervals.
Expected:  verified, and no slower than the faster of ONNX Runtime and OpenVINO; figures in docs/benchmarks/.

Weights are random: speed depends on shapes and on which blocks are zero, not on what the others hold.
"""

import json
import sys
from pathlib import Path

import compress.cli
import tune.cli


def main(folder: str = "runs/bench_224") -> int:
    for arch in ("mobilenet_v2", "resnet50"):
        job = Path(folder) / arch
        data = ["--data_set=synthetic", "--image_size=224", "--num_classes=1000", "--num_epochs=0"]
        prune = ["--conv_type=BlockL1Conv", "--N=4", "--pr_target=0.5", "--rearrange", "--export_onnx"]
        code = compress.cli.main([f"--arch={arch}", *data, *prune, f"--job_dir={job}"])
        tune_flags = ["--bsr=4", "--sparsity=0.5", "--threads=1", "--trials=150", "--seconds=30"]
        code = code or tune.cli.main([f"--onnx_path={job / 'model.onnx'}", *tune_flags])
        if code:
            return code
    print("\n| network | kerf ms | ONNX Runtime ms | OpenVINO ms | faster one / kerf | 95 % interval |")
    print("|-|-|-|-|-|-|")
    for arch in ("mobilenet_v2", "resnet50"):
        r = json.loads((Path(folder) / arch / "model.kerf" / "report.json").read_text())
        engines = [r["latency_ms"].get(name) for name in ("kerf", "onnxruntime", "openvino")]
        ms = [f"{e['median']:.2f}" if e else "not installed" for e in engines]
        low, high = r["speedup"]["ci95"]
        ratio = f"{r['speedup']['median']:.2f}" if low > 1 or high < 1 else "no measurable difference"
        print(f"| {arch} | {' | '.join(ms)} | {ratio} | {low:.2f}–{high:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
