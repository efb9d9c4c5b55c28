"""Which layer is wrong, when a network is: each is run alone."""

from __future__ import annotations

import numpy as np
import tvm
from onnx import helper
from tvm.target import Target

from kerf.deploy.compiler.build import Built
from kerf.deploy.compiler.choice import Choice
from kerf.deploy.frontend.network import Layer, Network
from kerf.deploy.measure.samples import draw
from kerf.deploy.measure.verify import reference_session, relative_error
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.plain import in_one_piece
from kerf.kernels.backends import backend_of
from kerf.kernels.lowering import compile_func
from kerf.kernels.precision import PRECISIONS


def blame(network: Network, built: Built, seed: int = 0) -> list[str]:
    """Layers that are wrong on their own: each is run alone on its true input and compared with its true output."""
    model = onnx_piece.model(network.graph, in_one_piece(network, "onnxruntime").pieces[0])
    nodes = {n.name: n for n in network.graph.nodes if n.name in network.layers}
    feed = draw(network.inputs, np.random.default_rng(seed))
    wanted = sorted({t for n in nodes.values() for t in (*n.input, *n.output)} - set(feed))
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(t) for t in wanted if t not in known)
    values = dict(zip(wanted, reference_session(model, optimised=False).run(wanted, feed))) | feed
    wrong = []
    for name, layer in network.layers.items():
        choice, node = built.choices[name], nodes[name]
        p = choice.problem
        form = backend_of(built.target).form(built.target, p.dtype)
        images = [form.pack(values[t].reshape(s)) for t, s in zip(node.input, (p.in_shape, p.out_shape))]
        y, truth = _alone(choice, layer, images, built.target), values[node.output[0]].reshape(p.out_shape)
        steps = layer.apart if p.y.quantised else 0  # sums of floats may round otherwise
        step = steps / max(float(np.abs(truth).max()), 1.0)
        error = relative_error(form.unpack(y, p.out_shape), truth)
        if error > max(PRECISIONS[p.precision or "f32"].kernel, step):
            wrong.append(f"{name} ({p.describe()}, {choice.kernel}): error {error:.1e}")
    return wrong


def _alone(choice: Choice, layer: Layer, images: list[np.ndarray], target: Target) -> np.ndarray:
    """The layer's result in the form of ``images``: its input, and perhaps a residual."""
    p = choice.problem
    form = backend_of(target).form(target, p.dtype)
    out = tvm.runtime.tensor(form.pack(np.zeros(p.out_shape, p.y.numpy if p.y.quantised else np.float32)))
    arrays = [images[0], *choice.pack(layer).values(), *images[1:]]
    compile_func(choice.prim_func(target), target)["main"](*map(tvm.runtime.tensor, arrays), out)
    return out.numpy()
