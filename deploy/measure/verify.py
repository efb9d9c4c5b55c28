"""A compiled network against ONNX Runtime on the original file; on a mismatch, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import helper

from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend.convert import Network
from kerf.kernels.cpu.layout import from_planes, to_planes
from kerf.kernels.lowering import compile_func

TOLERANCE = 1e-4  # of the largest output; float32 sums in another order differ by about 1e-6
# Rounded inputs of every product: random networks, which forgive least, differ by 3e-3 (tf32) and 3e-2 (f16).
ALLOWED = {"f32": TOLERANCE, "tf32": 1e-2, "f16": 6e-2}


class Mismatch(RuntimeError):
    """The compiled network computes something else."""


def _session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors derive from Exception directly
        name = model if isinstance(model, str) else "the model"
        raise ValueError(f"ONNX Runtime cannot load {name}, so nothing can be verified: {error}") from error


def relative_error(y: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference over the largest magnitude; inf when shapes differ or anything is not finite."""
    if y.shape != truth.shape or not (np.isfinite(y).all() and np.isfinite(truth).all()):
        return float("inf")
    return float(np.abs(y - truth).max() / max(np.abs(truth).max(), 1e-12))


def verify(
    run: Callable, path: Path, shape: tuple[int, ...], inputs: int = 3, seed: int = 0, precision: str = "f32"
) -> dict:
    """Compare on random inputs of several magnitudes. Returns {verified: True, max_abs_error, max_relative_error}.

    ``precision``: of the products that ``run`` makes (kerf.kernels.problem.PRECISIONS).

    Raises Mismatch with the input and the error otherwise, ValueError where ONNX Runtime's output is not finite.
    """
    session = _session(str(path))
    name = session.get_inputs()[0].name
    rng = np.random.default_rng(seed)
    worst = {"max_abs_error": 0.0, "max_relative_error": 0.0}
    for i in range(inputs):
        x = (rng.standard_normal(shape) * (1, 0.1, 3)[i % 3]).astype(np.float32)
        y, truth = run(x), session.run(None, {name: x})[0]
        if not np.isfinite(truth).all():
            raise ValueError(
                f"{path}: ONNX Runtime's own output for a random image is not finite; nothing to compare with"
            )
        error = relative_error(y, truth)
        if error > (allowed := ALLOWED[precision]):
            raise Mismatch(f"{path}: output {i} differs from ONNX Runtime by {error:.1e} (allowed {allowed:.0e})")
        worst["max_abs_error"] = max(worst["max_abs_error"], float(np.abs(y - truth).max()))
        worst["max_relative_error"] = max(worst["max_relative_error"], error)
    return {"verified": True, **worst}


def blame(network: Network, built: Built, seed: int = 0) -> list[str]:
    """Layers that are wrong on their own: each is run alone on its true input and compared with its true output."""
    model = onnx.load(str(network.path))
    nodes = {n.name: n for n in network.graph.nodes if n.name in network.layers}
    wanted = sorted({t for n in nodes.values() for t in (*n.input, *n.output)} - {network.input.name})
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(t) for t in wanted if t not in known)
    x = np.random.default_rng(seed).standard_normal(network.input_shape).astype(np.float32)
    values = dict(zip(wanted, _session(model).run(wanted, {network.input.name: x}))) | {network.input.name: x}
    wrong = []
    for name, layer in network.layers.items():
        choice, node = built.choices[name], nodes[name]
        p = choice.problem
        out = tvm.runtime.tensor(np.zeros(p.out_planes, np.float32))
        image, *residual = [to_planes(values[t].reshape(s)) for t, s in zip(node.input, (p.in_shape, p.out_shape))]
        arrays = [image, *choice.pack(layer).values(), layer.bias, *residual]
        compile_func(choice.prim_func(built.target), built.target)["main"](
            *[tvm.runtime.tensor(a) for a in arrays], out
        )
        error = relative_error(from_planes(out.numpy(), p.out_shape), values[node.output[0]].reshape(p.out_shape))
        if error > TOLERANCE:
            wrong.append(f"{name} ({p.describe()}, {choice.kernel}): error {error:.1e}")
    return wrong
