"""Single convolutions with 1xN blocks against the dense engines: the 1x1s of MobileNet-V2, the 3x3s of ResNet-50.

Launch:    python scripts/bench_layers.py [--set mobilenet_v2|resnet50] [--N 4] [--sparsities 0.5 0.75 0.9]
Hardware:  any x86-64 with AVX2; 3 minutes a set on one core.
Expected:  ratios over 1, outputs equal; in the 3x3 set a share of the FMA peak of 0.8 or more at 50 %.

Untuned. Whole calls from Python: some 40 us of every kerf call are not the kernel, so small layers say little here. A
layer counts as often as it occurs; the last row is the sum over layers, each engine its own.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy import bench, runtime, targets
from deploy.build import build
from deploy.convert import convert
from kernels.fma_peak import macs_per_us
from kernels.problem import Problem
from kernels.record import RecordBook

# channels in, side of the plane, channels out, stride; how often
POINTWISE = Counter(
    {
        **{(32, 112, 16, 1): 1, (16, 112, 96, 1): 1, (96, 56, 24, 1): 1, (24, 56, 144, 1): 2, (144, 56, 24, 1): 1},
        **{(144, 28, 32, 1): 1, (32, 28, 192, 1): 3, (192, 28, 32, 1): 2, (192, 14, 64, 1): 1, (64, 14, 384, 1): 4},
        **{(384, 14, 64, 1): 3, (384, 14, 96, 1): 1, (96, 14, 576, 1): 3, (576, 14, 96, 1): 2, (576, 7, 160, 1): 1},
        **{(160, 7, 960, 1): 3, (960, 7, 160, 1): 2, (960, 7, 320, 1): 1, (320, 7, 1280, 1): 1},
    }
)
SPATIAL = Counter(
    {
        **{(64, 56, 64, 1): 3, (128, 56, 128, 2): 1, (128, 28, 128, 1): 3, (256, 28, 256, 2): 1},
        **{(256, 14, 256, 1): 5, (512, 14, 512, 2): 1, (512, 7, 512, 1): 2},
    }
)
SETS = {"mobilenet_v2": (POINTWISE, 1), "resnet50": (SPATIAL, 3)}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--set", choices=SETS, default="mobilenet_v2")
    p.add_argument("--N", type=int, default=4)
    p.add_argument("--sparsities", nargs="+", type=float, default=(0.5, 0.75, 0.9))
    p.add_argument("--rounds", type=int, default=20)
    a = p.parse_args()
    layers, kernel = SETS[a.set]
    target = targets.parse("native", 1)
    peak = macs_per_us(target)
    print(f"1x{a.N} blocks, one thread, batch 1; FMA peak {2 * peak / 1e3:.0f} GFLOP/s")
    print("| layer | sparsity | kerf µs (p10–p90) | ONNX Runtime | OpenVINO | faster one / kerf | GFLOP/s | of peak |")
    print("|-|-|-|-|-|-|-|-|")
    for sparsity in a.sparsities:
        sums: Counter = Counter()
        for shape, times in layers.items():
            problem, measured = race(shape, kernel, a.N, sparsity, target, a.rounds)
            us = {m.engine: 1e3 * m.median for m in measured}
            row(problem.describe(), sparsity, us, problem.macs, peak, measured[0])
            sums.update({k: times * v for k, v in us.items()})
            sums["macs"] += times * problem.macs
        row("sum", sparsity, sums, sums.pop("macs"), peak)
    return 0


def row(name: str, sparsity: float, us: dict, macs: float, peak: float, kerf: bench.Measurement | None = None) -> None:
    spread = f" ({1e3 * kerf.p10:.0f}–{1e3 * kerf.p90:.0f})" if kerf else ""
    dense = {k: v for k, v in us.items() if k != "kerf"}
    others = " | ".join(f"{dense[k]:.0f}" if k in dense else "not installed" for k in ("onnxruntime", "openvino"))
    rate = macs / us["kerf"]
    print(
        f"| {name} | {sparsity:.0%} | {us['kerf']:.0f}{spread} | {others} | {min(dense.values()) / us['kerf']:.2f} "
        f"| {2 * rate / 1e3:.0f} | {rate / peak:.0%} |",
        flush=True,
    )


def race(shape, kernel: int, n: int, sparsity: float, target, rounds: int) -> tuple[Problem, list[bench.Measurement]]:
    """One convolution with ReLU in kerf and in the dense engines installed, outputs compared first."""
    channels, side, out, stride = shape
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((out, channels, kernel, kernel)).astype(np.float32)
    blocks = -(-out // n) * channels
    kept = (rng.permutation(blocks) >= round(sparsity * blocks)).reshape(-1, channels)
    weight *= np.repeat(kept, n, axis=0)[:out, :, None, None]
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(out, np.float32), "b")]
    pads, small = [kernel // 2] * 4, side // stride
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=pads, strides=[stride] * 2),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    x, y = (
        helper.make_tensor_value_info(k, TensorProto.FLOAT, s)
        for k, s in (("x", (1, channels, side, side)), ("y", (1, out, small, small)))
    )
    graph = helper.make_graph(nodes, "layer", [x], [y], weights)
    with tempfile.TemporaryDirectory(prefix="kerf-layer-") as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
        network = convert(path, n, 0.0)
        built = build(network, target, RecordBook())
        manifest = {"input": network.input_shape}
        session = runtime.Session(built.executable, list(built.packed.values()), manifest, 1)
        engines = [bench.Engine("kerf", session.run), bench.onnxruntime_engine(path, 1)]
        try:
            engines.append(bench.openvino_engine(path, 1))
        except ImportError:
            print("openvino is not installed; raced without it (pip install 'kerf[peers]')")
        image = rng.standard_normal(network.input_shape).astype(np.float32)
        return network.layers["conv"].problem, bench.race(engines, image, rounds=rounds)


if __name__ == "__main__":
    raise SystemExit(main())
