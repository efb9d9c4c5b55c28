"""Single convolutions with 1xN blocks against the dense engines: the 1x1s of MobileNet-V2, the 3x3s of ResNet-50.

Launch:    python scripts/bench/bench_layers.py [--set mobilenet_v2|resnet50] [--N 4 ...] [--sparsities 0 0.5 0.75 0.9]
Hardware:  any x86-64 with AVX2; 2 minutes for a set, an N and three sparsities on one core.
Expected:  outputs equal; the sums faster than the dense engines from 50 % on; figures in docs/benchmarks/.

Untuned. Every engine is called on its own from Python, the dense ones on a file of one layer, kerf as the layer's
function on images that are laid out already; so none pays for a network around it. A layer counts as often as it
occurs; the last row is the sum over layers. --out keeps the rows as JSON.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import tvm
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import choose
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure import bench, peers
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.runtime.callers import use_threads
from kerf.kernels.cpu.fma_peak import macs_per_us
from kerf.kernels.cpu.layout import out_planes, to_planes
from kerf.kernels.lowering import compile_func
from kerf.kernels.problem import Problem

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
    p.add_argument("--N", type=int, nargs="+", default=[4])
    p.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.75, 0.9])
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--sums", action="store_true", help="print the sums only")
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    layers, kernel = SETS[a.set]
    target = targets.parse("native", a.threads)
    peak = a.threads * macs_per_us(target)
    print(f"{a.threads} thread(s), batch {a.batch}; FMA peak {2 * peak / 1e3:.0f} GFLOP/s; times in µs")
    print("| layer | N | sparsity | kerf (p10–p90) | ONNX Runtime | OpenVINO | oneDNN | faster of the first two / kerf "
          "| 95 % interval | GFLOP/s | of peak |\n|-|-|-|-|-|-|-|-|-|-|-|")  # fmt: skip
    stored = []
    for n in a.N:
        for sparsity in a.sparsities:
            sums, macs = {}, 0.0
            for shape, times in layers.items():
                problem, measured = race(shape, kernel, n, sparsity, a.batch, target, a.threads, a.rounds)
                stored.append(row(problem.describe(), n, sparsity, measured, problem.macs, peak, quiet=a.sums))
                macs += times * problem.macs
                for m in measured:
                    sums[m.engine] = sums.get(m.engine, 0) + times * np.array(m.samples)
            total = [bench.Measurement(name, tuple(samples), 1) for name, samples in sums.items()]
            stored.append(row("sum", n, sparsity, total, macs, peak))
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(json.dumps({"set": a.set, "threads": a.threads, "batch": a.batch, "rows": stored}, indent=1))
    return 0


def row(name: str, n: int, sparsity: float, measured: list, macs: float, peak: float, quiet: bool = False) -> dict:
    s = peers.summary(measured, macs, peak)
    cells = [name, str(n), f"{sparsity:.0%}", *peers.cells(measured, 1e3, 0), peers.text(s["speedup"])]
    if not quiet:
        print(f"| {' | '.join(cells)} | {s['gflops']:.0f} | {s['of_peak']:.0%} |", flush=True)
    return {"layer": name, "N": n, "sparsity": sparsity, **s}


def race(shape, kernel: int, n: int, sparsity: float, batch: int, target, threads: int, rounds: int):
    """(problem, measurements) of one convolution with ReLU in kerf and the dense engines, outputs compared first."""
    import torch

    channels, side, out, stride = shape
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((out, channels, kernel, kernel)).astype(np.float32)
    blocks = -(-out // n) * channels
    kept = (rng.permutation(blocks) >= round(sparsity * blocks)).reshape(-1, channels)
    weight *= np.repeat(kept, n, axis=0)[:out, :, None, None]
    conv = torch.nn.Conv2d(channels, out, kernel, stride, kernel // 2)
    conv.weight.data, conv.bias.data = torch.from_numpy(weight), torch.zeros(out)
    image = rng.standard_normal((batch, channels, side, side)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="kerf-layer-") as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(one_layer(weight, image.shape, kernel, stride), str(path))
        layer = convert(path, n, 0.0).layers["conv"]
        dense = peers.engines(path, torch.nn.Sequential(conv, torch.nn.ReLU()), image, threads)
        return layer.problem, bench.race([kerf(layer, image, target, threads), *dense], image, rounds=rounds)


def one_layer(weight: np.ndarray, shape: tuple, kernel: int, stride: int) -> onnx.ModelProto:
    out, small = weight.shape[0], shape[2] // stride
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[kernel // 2] * 4, strides=[stride] * 2),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], out, small, small))
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(out, np.float32), "b")]
    graph = helper.make_graph(nodes, "layer", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def kerf(layer, image: np.ndarray, target, threads: int) -> bench.Engine:
    """The layer's function on its default configuration."""
    choice = choose(layer.problem, target, RecordBook())
    p: Problem = choice.problem
    function = compile_func(choice.prim_func(target), target)["main"]
    out = tvm.runtime.tensor(np.zeros(out_planes(p), np.float32))
    arrays = [to_planes(image), *choice.pack(layer).values(), layer.bias]
    arguments = [*[tvm.runtime.tensor(a) for a in arrays], out]
    pixels = np.from_dlpack(out)[:, :, : p.out_height * p.out_width].reshape(p.out_shape)

    def run(x: np.ndarray) -> np.ndarray:
        if x is not image:
            raise ValueError("this engine holds its image in its own layout; expected that very image")
        use_threads(threads)
        function(*arguments)
        return pixels

    return bench.Engine("kerf", run)


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("bench_layers", main))
