"""Which layer is wrong, when a network is: each is run alone."""

from __future__ import annotations

import numpy as np
import onnx
import tvm
from onnx import helper

from kerf.deploy.compiler.build import Built
from kerf.deploy.frontend.network import Network
from kerf.deploy.measure.samples import draw
from kerf.deploy.measure.verify import reference_session, relative_error
from kerf.kernels.backends import backend_of
from kerf.kernels.lowering import compile_func
from kerf.kernels.precision import PRECISIONS


def blame(network: Network, built: Built, seed: int = 0) -> list[str]:
    """Layers that are wrong on their own: each is run alone on its true input and compared with its true output."""
    model = onnx.load(str(network.path))
    nodes = {n.name: n for n in network.graph.nodes if n.name in network.layers}
    rng = np.random.default_rng(seed)
    feed = draw(network.inputs, rng)
    wanted = sorted({t for n in nodes.values() for t in (*n.input, *n.output)} - set(feed))
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(t) for t in wanted if t not in known)
    values = dict(zip(wanted, reference_session(model).run(wanted, feed))) | feed
    wrong = []
    for name, layer in network.layers.items():
        choice, node = built.choices[name], nodes[name]
        p = choice.problem
        form = backend_of(built.target).form(built.target, p.dtype)
        out = tvm.runtime.tensor(form.pack(np.zeros(p.out_shape, np.float32)))
        image, *residual = [form.pack(values[t].reshape(s)) for t, s in zip(node.input, (p.in_shape, p.out_shape))]
        arrays = [image, *choice.pack(layer).values(), *residual]
        compile_func(choice.prim_func(built.target), built.target)["main"](
            *[tvm.runtime.tensor(a) for a in arrays], out
        )
        error = relative_error(form.unpack(out.numpy(), p.out_shape), values[node.output[0]].reshape(p.out_shape))
        if error > PRECISIONS[p.precision or "f32"].kernel:
            wrong.append(f"{name} ({p.describe()}, {choice.kernel}): error {error:.1e}")
    return wrong
