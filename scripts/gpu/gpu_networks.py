"""Whole networks on a GPU: bundles checked against ONNX Runtime's outputs and raced against torch with cuDNN.

Launch:    python scripts/gpu/gpu_networks.py BUNDLE [BUNDLE ...] [--arch resnet50] [--out FILE.json]
           (bundles of scripts/gpu/gpu_bundles.py, or of model_tune.py with expected.npz from BUNDLE --expect ONNX)
Hardware:  an NVIDIA GPU; torch, torchvision, numpy, TVM's runtime libraries and tvm_ffi; no compiler.
Expected:  outputs within 1e-2 of the largest; median milliseconds of CUDA graphs, image and result on the device. The
           dense network in torch: channels_last, f16 and TF32, batch norm folded, eager and as TorchScript with
           cuDNN's fused convolutions. Figures in docs/benchmarks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import _checkout  # noqa: F401 - before kerf, which measure imports
import numpy as np

ROUNDS, SEED = 40, 0


def image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def expect(model: Path, bundle: Path) -> None:
    """ONNX Runtime's output for the image that is raced, beside the bundle."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape = tuple(json.loads((bundle / "manifest.json").read_text())["input"])
    (y,) = session.run(None, {session.get_inputs()[0].name: image(shape)})
    np.savez(bundle / "expected.npz", y=y)


def graph(call: Callable):
    """One call."""
    import torch
    import tvm_ffi

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), tvm_ffi.use_torch_stream():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured), tvm_ffi.use_torch_stream():
        call()
    return captured


def torch_engines(arch: str, shape: tuple[int, ...]) -> dict[str, Callable]:
    import torch
    import torchvision
    from torch.fx.experimental.optimization import fuse

    engines: dict[str, Callable] = {}
    for name, kind in (("f16", torch.float16), ("tf32", torch.float32)):
        model = fuse(torchvision.models.get_model(arch).eval()).cuda().to(kind).to(memory_format=torch.channels_last)
        x = torch.from_numpy(image(shape)).cuda().to(kind).to(memory_format=torch.channels_last)
        scripted = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, x)))
        engines[f"torch {name} eager"] = lambda model=model, x=x: model(x)
        engines[f"torch {name} script"] = lambda model=scripted, x=x: model(x)
    return engines


def race(calls: dict[str, Callable]) -> dict[str, list[float]]:
    """Milliseconds, sorted; everyone once in every round."""
    import torch

    graphs = {}
    for name, call in calls.items():
        try:
            graphs[name] = graph(call)
        except RuntimeError as error:
            print(f"{name}: cannot be captured ({str(error).splitlines()[0]})")
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for round_ in range(ROUNDS + 5):
        for name, captured in graphs.items():
            begin.record()
            captured.replay()
            end.record()
            end.synchronize()
            if round_ >= 5:
                found[name].append(begin.elapsed_time(end))
    return {name: sorted(times) for name, times in found.items()}


def measure(bundle: Path, arch: str) -> dict:
    import torch

    from kerf.deploy.runtime import session as runtime
    from kerf.deploy.runtime.bundle import read_manifest

    session = runtime.load(bundle)
    x = image(session.input_shape)
    y, truth = session.run(x), np.load(bundle / "expected.npz")["y"]
    error = float(np.abs(y - truth).max() / np.abs(truth).max())
    on_device = torch.from_numpy(x).cuda()
    with torch.no_grad():
        calls = {"kerf": lambda: session.run_on_device(on_device), **torch_engines(arch, session.input_shape)}
        times = race(calls)
    row = {"bundle": bundle.name, "precision": read_manifest(bundle)["precision"], "relative_error": error}
    row["ms"] = {name: [t[len(t) // 4], median(t), t[-1 - len(t) // 4]] for name, t in times.items()}
    dense = min(row["ms"][n][1] for n in row["ms"] if n != "kerf")
    row["speedup"] = dense / row["ms"]["kerf"][1] if "kerf" in row["ms"] else None
    print(json.dumps(row), flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--arch", default="resnet50", help="torchvision's name of the dense network")
    parser.add_argument("--expect", type=Path, metavar="ONNX", help="only write expected.npz")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for bundle in args.bundles:
        if not (bundle / "manifest.json").is_file():
            parser.error(f"{bundle}: no bundle (no manifest.json); build one with scripts/gpu/gpu_bundles.py")
    if args.expect:
        expect(args.expect, args.bundles[0])
        return 0
    import torch

    if not torch.cuda.is_available():
        parser.error("no NVIDIA GPU here, or torch without CUDA; carry the bundles to a machine with one")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    rows = [measure(bundle, args.arch) for bundle in args.bundles]
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_networks", main))
