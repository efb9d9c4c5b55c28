"""Random networks of the zoo, pruned and exported: what the benchmarks race. Needs torch.

Weights are random, batch norms calibrated after pruning so that every layer's output counts: speed depends on shapes
and on which blocks are zero, not on what the others hold.
"""

from pathlib import Path

import numpy as np
import torch

from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import checkpoint
from kerf.deploy.export import export
from kerf.deploy.quantise.quantise import quantise
from kerf.tune.pipeline import Bundle, compile

SIZE, CLASSES = 224, 1000
ARCHS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet50")


def network(arch: str, n: int, sparsity: float, folder: Path, batch: int = 1) -> tuple[torch.nn.Module, Path]:
    """A random network of `folder` in torch and as .onnx, made if they are not there yet."""
    folder = folder / f"{arch}-1x{n}-{sparsity:g}"
    model = folder / f"b{batch}.onnx"
    if not (folder / "weights.safetensors").exists():
        prune(arch, n, sparsity, folder)
    module = create(arch, CLASSES, SIZE).eval()
    module.load_state_dict(checkpoint.read_weights(folder / "weights.safetensors"))
    if not model.exists():
        export(module, torch.zeros(batch, 3, SIZE, SIZE), model)
    return module, model


def images(batch: int) -> np.ndarray:
    """At least four, random, of which a network takes its batch."""
    return np.random.default_rng(0).standard_normal((max(4, batch), 3, SIZE, SIZE)).astype(np.float32)


def integers(model: Path, batch: int = 1) -> Path:
    """A network of ``network`` on integers, quantised with ``images``, beside it, made if it is not there yet."""
    path, samples = model.with_suffix(".int8.onnx"), model.with_name("calibration.npz")
    if not path.exists():
        np.savez(samples, input=images(batch))  # the name that kerf.deploy.export gives it
        quantise(model, path, samples)
        samples.unlink()
    return path


def prune(arch: str, n: int, sparsity: float, folder: Path) -> None:
    """A random network, rearranged and pruned to 1xN, into weights.safetensors."""
    torch.manual_seed(0)
    model, example = create(arch, CLASSES, SIZE).eval(), torch.zeros(1, 3, SIZE, SIZE)
    if sparsity:
        method = METHODS["one_by_n"](Settings(n, rearrange=True))
        recipe.prune(model, method, DependencyGraph.trace(model, example), example, sparsity)
    calibrate(model, torch.randn(4, 3, SIZE, SIZE))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / "weights.safetensors", model.state_dict())


def calibrate(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Batch norm statistics of ``images`` (B, C, ...), random ones, so that every layer's output counts.

    Batch norms alone are in training mode meanwhile: detectors take no images without targets there.
    """
    norms = [m for m in model.eval().modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # running statistics become those of the batches that follow
        norm.train()
    with torch.no_grad():
        model(images)
    model.eval()


def build(model: Path, out: Path, least: float, n: int, threads: int = 1, trials: int = 0) -> Bundle:
    """A verified bundle in which layers with at least the share `least` of zero n x 1 blocks are sparse; no race."""
    return compile(model, out, n=n, sparsity=least, threads=threads, trials=trials, against=(), seconds=0.1)
