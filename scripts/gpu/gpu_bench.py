"""Checks GPU kernels against float64 and races them against cuDNN, layer by layer.

Launch:    python scripts/gpu/gpu_bench.py KIT [--out FILE.json]         (KIT: what scripts/gpu/gpu_kit.py wrote)
Hardware:  an NVIDIA GPU of the kit's architecture; torch, numpy, TVM's runtime libraries and tvm_ffi; no compiler.
Expected:  every kernel within 1e-3 (tf32, f16) or 1e-5 (f32) of float64, in norm; a table of milliseconds by layer:
           cuDNN f16 and tf32 on channels_last without bias and activation, kerf's with both. Figures: docs/benchmarks.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from _checkout import ROOT

NAME, FOLDER = "kerf.kernels.cuda", ROOT / "kernels" / "cuda"  # its __init__ imports the compiler, which a device lacks
spec = importlib.machinery.ModuleSpec(NAME, None, origin=str(FOLDER / "__init__.py"))
spec.submodule_search_locations = [str(FOLDER)]
sys.modules[NAME] = importlib.util.module_from_spec(spec)

# ruff: noqa: E402 - what follows needs the path and the packages above
import numpy as np
import torch
import torch.nn.functional as F
import tvm_ffi
from _tables import table

from kerf.deploy.runtime import gpu, session
from kerf.kernels.bsr import BSR
from kerf.kernels.cuda.emit import gather, halo, panel, stage
from kerf.kernels.cuda.host.problems import weights
from kerf.kernels.cuda.layout import out_rows, pitch
from kerf.kernels.problem import Problem

TOLERANCE = {"f32": 1e-5, "tf32": 1e-3, "f16": 1e-3}
REPEATS, ROUNDS = 10, 15
ACTIVATION = {
    "none": lambda v: v,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


def dtype_of(p: Problem) -> torch.dtype:
    return getattr(torch, p.dtype)


def to_rows(x: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) -> (c, pitch)."""
    n, c, h, w = x.shape
    rows = torch.zeros(c, pitch(n * h * w), dtype=x.dtype, device=x.device)
    rows[:, : n * h * w] = x.permute(1, 2, 3, 0).reshape(c, -1)
    return rows


def from_rows(y: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    n, c, h, w = shape
    return y[:, : n * h * w].reshape(c, h, w, n).permute(3, 0, 1, 2)


def pack(kernel: str, p: Problem, w: np.ndarray, c: dict) -> dict[str, np.ndarray]:
    """As the kernel's own module does."""
    if "depthwise" in kernel:
        return {"data": np.ascontiguousarray(w.reshape(p.out_channels, p.taps))}
    blocks = BSR.from_conv(w, p.n) if p.n else gather.dense_blocks(p, w, c["rows"])
    if kernel.endswith("_halo"):
        return halo.pack(p, blocks)
    if kernel.endswith("_panels"):
        return panel.pack(p, blocks, c)
    if kernel.endswith("_simt"):
        return gather.pack(p, gather.Lists.of(blocks, 1))
    return stage.pack(p, gather.Lists.of(blocks, c["chunk"]), c)


class Layer:
    """A kernel with its arguments on the GPU."""

    def __init__(self, item: dict, libraries: dict):
        self.item, self.p = item, Problem.from_json(item["problem"])
        p, c = self.p, item["config"]
        _, self.w, self.bias = weights(p, item["density"])
        g = torch.Generator("cuda").manual_seed(1)
        self.x = torch.randn(p.in_shape, generator=g, device="cuda").to(dtype_of(p))
        self.residual = [torch.randn(p.out_shape, generator=g, device="cuda").to(dtype_of(p))] if p.residual else []
        packed = [torch.from_numpy(a).cuda() for a in pack(item["kernel"], p, self.w, c).values()]
        self.y = torch.full(out_rows(p), float("nan"), dtype=dtype_of(p), device="cuda")
        bias = torch.from_numpy(self.bias).cuda()
        self.args = [to_rows(self.x), *packed, bias, *(to_rows(r) for r in self.residual), self.y]
        self.function = libraries[item["library"]][item["function"]]

    def run(self) -> None:
        self.function(*self.args)

    def error(self, wide: torch.dtype) -> float:
        """Relative, in norm, against torch in ``wide``; infinite if anything was left unwritten."""
        p = self.p
        self.y.fill_(float("nan"))
        self.run()
        torch.cuda.synchronize()
        if not bool(torch.isfinite(self.y).all()):
            return float("inf")
        top, left, bottom, right = p.padding
        x = F.pad(self.x.to(wide), (left, right, top, bottom))
        w, bias = (torch.from_numpy(a).cuda().to(wide) for a in (self.w, self.bias))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            y = F.conv2d(x, w, bias, p.stride, 0, p.dilation, p.groups)
        for r in self.residual:
            y = y + r.to(wide)
        y = ACTIVATION[p.activation](y)
        return float((from_rows(self.y, p.out_shape).to(wide) - y).norm() / y.norm().clamp_min(1e-30))


def cudnn(p: Problem, precision: str, fused: bool = False) -> Callable:
    """The dense convolution on channels_last, alone or ``fused`` with bias, residual and relu."""
    kind = torch.float16 if precision == "f16" else torch.float32
    x = torch.randn(p.in_shape, device="cuda").to(kind).to(memory_format=torch.channels_last)
    _, w, _ = weights(replace(p, n=0, nnzb=0), 1.0)
    w = torch.from_numpy(w).cuda().to(kind).to(memory_format=torch.channels_last)
    top, left, *_ = p.padding
    padding = (top, left)
    if not fused:
        return lambda: F.conv2d(x, w, None, p.stride, padding, p.dilation, p.groups)
    bias = torch.randn(p.out_channels, device="cuda").to(kind)
    if p.residual:
        z = torch.randn(p.out_shape, device="cuda").to(kind).to(memory_format=torch.channels_last)
        return lambda: torch.cudnn_convolution_add_relu(x, w, z, 1.0, bias, p.stride, padding, p.dilation, p.groups)
    if p.activation == "relu":
        return lambda: torch.cudnn_convolution_relu(x, w, bias, p.stride, padding, p.dilation, p.groups)
    return lambda: F.conv2d(x, w, bias, p.stride, padding, p.dilation, p.groups)


def graph(call: Callable) -> torch.cuda.CUDAGraph:
    """REPEATS calls."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured), tvm_ffi.use_torch_stream():
        for _ in range(REPEATS):
            call()
    return captured


def race(calls: list[Callable]) -> list[list[float]]:
    """Microseconds of a call, a list for each, ROUNDS long; everyone once in every round."""
    graphs = [graph(call) for call in calls]
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    found: list[list[float]] = [[] for _ in calls]
    for round_ in range(ROUNDS + 2):
        for times, captured in zip(found, graphs, strict=True):
            begin.record()
            captured.replay()
            end.record()
            end.synchronize()
            if round_ >= 2:
                times.append(begin.elapsed_time(end) / REPEATS * 1e3)
    return found


def check(items: list[dict], libraries: dict) -> list[dict]:
    """The worst error of every kernel and precision."""
    worst: dict[tuple, dict] = {}
    failures = 0
    for item in items:
        layer = Layer(item, libraries)
        error = layer.error(torch.float64)
        precision = layer.p.precision if "simt" not in item["kernel"] and "depthwise" not in item["kernel"] else None
        limit = TOLERANCE[layer.p.precision] if precision or layer.p.precision != "tf32" else TOLERANCE["f32"]
        if not error <= limit:
            failures += 1
            print(f"WRONG {item['kernel']} {item['group']} {item['config']}: {error:.1e}")
        key = item["kernel"], layer.p.precision
        row = worst.setdefault(key, {"kernel": key[0], "precision": key[1], "cases": 0, "worst": 0.0})
        row["cases"] += 1
        row["worst"] = max(row["worst"], error)
    for row in sorted(worst.values(), key=lambda r: (r["kernel"], r["precision"])):
        print(f"{row['kernel']:24} {row['precision']:5} {row['cases']:4} cases, worst error {row['worst']:.1e}")
    print(f"{len(items)} cases, {failures} wrong", flush=True)
    return list(worst.values())


def time_layers(items: list[dict], libraries: dict) -> list[dict]:
    """A row for every kernel and layer, cuDNN's first."""
    groups = defaultdict(list)
    for item in items:
        groups[item["group"]].append(item)
    rows = []
    for group, members in groups.items():
        p = Problem.from_json(group)
        layers = [Layer(item, libraries) for item in members]
        for layer in layers:
            error = layer.error(torch.float32)
            if not error <= TOLERANCE[layer.p.precision]:
                print(f"WRONG {layer.item['kernel']} {p.describe()} {layer.item['config']}: {error:.1e}")
        dense = {("cudnn", name): cudnn(p, name) for name in ("f16", "tf32")}
        dense |= {("cudnn fused", name): cudnn(p, name, fused=True) for name in ("f16",)}
        found = race([*dense.values(), *(layer.run for layer in layers)])
        named = [{"kernel": k, "precision": name, "density": 1.0, "config": {}} for k, name in dense]
        named += [
            {"kernel": i["kernel"], "precision": y.p.precision, "density": i["density"], "config": i["config"]}
            for i, y in zip(members, layers, strict=True)
        ]
        for row, times in zip(named, found, strict=True):
            times.sort()
            us, spread = median(times), (times[len(times) // 4], times[-1 - len(times) // 4])
            about = {"layer": p.describe(), "batch": p.batch, "count": members[0]["count"], "group": group}
            rows.append({**about, **row, "us": us, "quartiles": spread})
        del layers
        torch.cuda.empty_cache()
    return rows


def copy_rate() -> float:
    """Bytes a microsecond, read and written, of a large copy on the device."""
    source = torch.empty(1 << 29, dtype=torch.float16, device="cuda")
    to = torch.empty_like(source)
    (times,) = race([lambda: to.copy_(source)])
    return 2 * source.nbytes / median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kits", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for kit in args.kits:
        if not (kit / "index.jsonl").is_file():
            parser.error(f"{kit}: no kit (no index.jsonl); write one with scripts/gpu/gpu_kit.py")
    if not torch.cuda.is_available():
        parser.error("no NVIDIA GPU here, or torch without CUDA; carry the kits to a machine with one")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    session.load_runtime(cuda=True)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version(), flush=True)
    result: dict = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for kit in args.kits:
        items = [json.loads(line) for line in (kit / "index.jsonl").read_text().splitlines()]
        libraries = {}
        for name in {item["library"] for item in items}:
            gpu.provide((kit / f"{name}.key").read_text(), (kit / f"{name}.cubin").read_bytes())
            libraries[name] = tvm_ffi.load_module(str(kit / f"{name}.so"))
        result.setdefault("checks", []).extend(check([i for i in items if i["use"] == "check"], libraries))
        result.setdefault("layers", []).extend(time_layers([i for i in items if i["use"] == "time"], libraries))
    if result["layers"]:
        result["copy_bytes_per_us"] = copy_rate()
        print(f"a copy moves {result['copy_bytes_per_us'] / 1e6:.2f} TB/s")
        print(table(result["layers"], result["copy_bytes_per_us"]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("gpu_bench", main))
