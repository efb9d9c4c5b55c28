"""An .onnx graph as a Program: pieces of it, from one layer to the next, computed by ONNX Runtime."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from kerf.compress.second_order.layer import Layer, Window
from kerf.compress.second_order.walk import Values
from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes, reads

LAYERS = ("Conv", "Gemm", "MatMul")
DEVICE = ["CPUExecutionProvider"]


class Sessions:
    """``graph``: cleaned; its constants become the pruned network's, layer by layer, as `write` is called."""

    def __init__(self, graph: Graph, threads: int = 0):
        self.graph, self.threads = graph, threads
        self.nodes = graph.nodes
        self.place = {node.output[0]: i for i, node in enumerate(self.nodes)}
        self.last = {name: i for i, node in enumerate(self.nodes) for name in reads(node)}
        self.last |= dict.fromkeys((o.name for o in graph.outputs), len(self.nodes))
        self.dense, self.changed = dict(graph.constants), set[str]()
        self.layers = [layer for node in self.nodes if (layer := self._layer(node))]
        self._pieces: dict[tuple[int, int, int], onnxruntime.InferenceSession] = {}

    def start(self, batch: dict[str, np.ndarray]) -> Values:
        return {"": (0, None), **{name: (array, array) for name, array in batch.items()}}

    def run(self, values: Values, layer: Layer | None) -> Values:
        first = values[""][0]
        stop = self.place[layer.makes] if layer else len(self.nodes)
        known = {name: pair for name, pair in values.items() if name}
        alike = self.changed.isdisjoint(n for node in self.nodes[first:stop] for n in node.input)
        alike &= all(a is b for a, b in known.values())
        ends = (stop + 1 if layer else stop, stop)
        before, now = (
            dict[str, np.ndarray]() if alike and side else self._computed(side, first, ends[side], stop, known)
            for side in (0, 1)
        )
        found: Values = {"": (stop, None)}
        for name, array in before.items():
            found[name] = array, array if alike else now.get(name)
        return found

    def _computed(self, side: int, first: int, end: int, stop: int, known: Values) -> dict[str, np.ndarray]:
        """After nodes first … end - 1, in one of the networks: what nodes from `stop` on read, or make."""
        nodes, given = self.nodes[first:end], {name: pair[side] for name, pair in known.items()}
        made = [n for node in nodes for n in node.output if self.last.get(n, -1) >= stop]
        kept = {name: array for name, array in given.items() if self.last.get(name, -1) >= stop}
        if not made:
            return kept
        key = side, first, end
        if key not in self._pieces:
            if any(k[1] != first for k in self._pieces):
                self._pieces.clear()  # they hold weights and memory, and are not asked for again
            self._pieces[key] = self._session(side, nodes, made, given)
        session = self._pieces[key]
        return kept | dict(zip(made, session.run(made, {i.name: given[i.name] for i in session.get_inputs()})))

    def _session(
        self, side: int, nodes: Sequence[onnx.NodeProto], made: Sequence[str], given: Mapping[str, np.ndarray]
    ) -> onnxruntime.InferenceSession:
        outside = dict.fromkeys(n for node in nodes for n in reads(node) if n in given)
        part = self.graph.part(nodes, list(outside), made)
        if not side:
            part.constants = self.dense
        model = part.model()
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.ClearField("shape")  # of one sample, where there may be more
        del model.graph.value_info[:]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        options.enable_cpu_mem_arena = False
        return onnxruntime.InferenceSession(model.SerializeToString(), options, DEVICE)

    def _layer(self, node: onnx.NodeProto) -> Layer | None:
        if node.op_type not in LAYERS or node.domain not in STANDARD:
            return None
        name = node.input[1]
        weight = self.graph.constants.get(name)
        if weight is None or weight.dtype != np.float32 or len(self.graph.consumers(name)) != 1:
            return None
        given, x = attributes(node), node.input[0]
        if x in self.graph.constants:
            return None
        if node.op_type == "Conv":
            spatial = weight.ndim - 2
            ones, zeros = [1] * spatial, [0] * 2 * spatial
            if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
                return None
            pads = given.get("pads", zeros)
            window = Window(
                weight.shape[2:],
                tuple(given.get("strides", ones)),
                tuple(given.get("dilations", ones)),
                tuple(zip(pads[:spatial], pads[spatial:])),
            )
            flat = torch.tensor(weight).flatten(1)
            return Layer(name, x, node.output[0], flat, window, given.get("group", 1), shape=weight.shape)
        if weight.ndim != 2 or given.get("transA", 0):
            return None
        flat = torch.tensor(weight if given.get("transB", 0) else weight.T)
        return Layer(name, x, node.output[0], flat, None, biased=node.op_type == "Gemm", shape=weight.shape)

    def write(self, layer: Layer, weight: Tensor, constant: Tensor) -> None:
        node = self.nodes[self.place[layer.makes]]
        given = attributes(node)
        array = weight.float().numpy()
        if node.op_type != "Conv" and not given.get("transB", 0):
            array = array.T
        self.graph.note(layer.name, np.ascontiguousarray(array.reshape(layer.shape)))
        self.changed.add(layer.name)
        if not layer.biased:
            return
        name = f"{layer.makes}.constant"
        old = self.dense[node.input[2]] if len(node.input) > 2 and node.input[2] else np.float32(0)
        self.dense[name] = np.broadcast_to(old, (len(weight),)).astype(np.float32)
        self.graph.note(name, (constant.float().numpy() / given.get("beta", 1.0)).astype(np.float32))
        del node.input[2:]
        node.input.append(name)
        self.changed.add(name)
