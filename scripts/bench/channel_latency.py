"""What channel pruning, 1×N blocks and both bring on this CPU: MACs and milliseconds of four networks in one race.

Launch:    python scripts/bench/channel_latency.py --arch resnet56 --dense DENSE.safetensors --narrow best.safetensors
           python scripts/bench/channel_latency.py --arch resnet50 --image_size 224 --flops_target 0.5
Hardware:  any x86-64 with AVX2, 2 to 6 minutes.
Expected:  narrow networks run in less than their share of the time in kerf, both together fastest. --narrow is a
           checkpoint of a channel-pruned network; without it channels are cut by L1 to --flops_target. Weights that
           are not given are random, with calibrated batch norms: speed depends on shapes and zeros alone.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network import cost
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe
from kerf.compress.pruning.loading import load_network
from kerf.compress.pruning.settings import Settings
from kerf.deploy.export import export
from kerf.deploy.measure import bench, peers
from kerf.deploy.measure.environment import environment
from kerf.deploy.runtime import session
from kerf.zoo import build, calibrate


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, default=Path("runs/channel_latency"))
    p.add_argument("--arch", default="resnet56")
    p.add_argument("--image_size", type=int, default=32)
    p.add_argument("--classes", type=int, default=10)
    p.add_argument("--dense", type=Path)
    p.add_argument("--narrow", type=Path)
    p.add_argument("--flops_target", type=float, default=0.5)
    p.add_argument("--round_to", type=int, default=1)
    p.add_argument("--N", type=int, default=4)
    p.add_argument("--sparsity", type=float, default=0.5)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--trials", type=int, default=0)
    p.add_argument("--seconds", type=float, default=20)
    a = p.parse_args()
    example = torch.zeros(1, 3, a.image_size, a.image_size)
    x = np.random.default_rng(0).standard_normal(example.shape).astype(np.float32)
    dense = network(a.arch, a.classes, a.image_size, a.dense)
    narrow = network(a.arch, a.classes, a.image_size, a.narrow)
    if not a.narrow:
        settings = Settings(by_macs=True, round_to=a.round_to)
        prune(narrow, "l1", settings, example, 1 - a.flops_target)
    for model, given in ((dense, a.dense), (narrow, a.narrow)):
        if not given:
            calibrate(model, torch.randn(4, 3, a.image_size, a.image_size))
    blocks = Settings(a.N, rearrange=True)
    both, sparse = copy.deepcopy(narrow), copy.deepcopy(dense)
    for model in (both, sparse):
        prune(model, "one_by_n", blocks, example, a.sparsity)
        if not a.dense:
            calibrate(model, torch.randn(4, 3, a.image_size, a.image_size))
    named = {"dense": dense, "channels": narrow, f"1x{a.N}": sparse, f"channels and 1x{a.N}": both}
    engines = []
    for name, model in named.items():
        engines += contenders(name, model, example, x, a)
    measured = {m.engine: m for m in bench.interleave(engines, x, seconds=a.seconds)}
    report(named, measured, example, a)
    return 0


def network(arch: str, classes: int, size: int, weights: Path | None) -> nn.Module:
    torch.manual_seed(0)
    model = create(arch, classes, size).eval()
    if weights:
        load_network(model, weights, arch, torch.zeros(1, 3, size, size))
    return model


def prune(model: nn.Module, method: str, settings: Settings, example: torch.Tensor, sparsity: float) -> None:
    recipe.prune(model, METHODS[method](settings), DependencyGraph.trace(model, example), example, sparsity)


def contenders(name: str, model: nn.Module, example, x: np.ndarray, a: argparse.Namespace) -> list[bench.Engine]:
    """kerf and the dense engines on one network, verified against each other."""
    folder = a.folder / a.arch / name.replace(" ", "-")
    path, out = folder / "model.onnx", folder / "model.kerf"
    export(model, example, path)
    build(path, out, a.sparsity, a.N, a.threads, a.trials)  # without zeros in blocks, every layer stays dense
    found = [bench.Engine("kerf", session.load(out, a.threads).run)]
    found += [e for e in peers.engines(path, model, x, a.threads) if e.name != "onednn"]
    bench.refuse_different_outputs(found, x, 1e-3)
    return [bench.Engine(f"{e.name}, {name}", e.run) for e in found]


def report(named: dict, measured: dict, example: torch.Tensor, a: argparse.Namespace) -> None:
    faster = min((m for n, m in measured.items() if n.endswith(", dense") and "kerf" not in n), key=lambda m: m.median)
    print("| network | MACs (M) | parameters (M) | kerf ms (p10–p90) | ONNX Runtime | OpenVINO |", end="")
    print(f" faster dense engine on the dense network ({faster.engine.split(',')[0]}) / kerf | 95 % interval |")
    print("|-|-|-|-|-|-|-|-|")
    rows = []
    for name, model in named.items():
        spent = cost.count(model, example, {n: p != 0 for n, p in model.named_parameters() if p.ndim > 1})
        kerf = measured[f"kerf, {name}"]
        ratio = bench.speedup(kerf, [faster])
        others = [f"{m.median:.3f}" if (m := measured.get(f"{e}, {name}")) else "–" for e in peers.NAMES[:2]]
        cells = [name, f"{spent.macs / 1e6:.1f}", f"{spent.params / 1e6:.2f}"]
        cells += [f"{kerf.median:.3f} ({kerf.p10:.3f}–{kerf.p90:.3f})", *others, peers.text(ratio)]
        print(f"| {' | '.join(cells)} |")
        rows.append({"network": name, "macs": spent.macs, "params": spent.params, "speedup": ratio})
    times = {name: {"median": m.median, "p10": m.p10, "p90": m.p90} for name, m in measured.items()}
    saved = {"arch": a.arch, "threads": a.threads, "rows": rows, "ms": times, **environment()}
    (a.folder / a.arch / "results.json").write_text(json.dumps(saved, indent=1))


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("channel_latency", main))
