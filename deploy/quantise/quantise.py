"""An f32 .onnx file -> the same network with Q/DQ, which computes on integers of 8 bits.

Activations uint8, a scale and a zero point each; weights int8, symmetric, a scale for each output channel, so that
zeros stay zeros; biases int32. Batch norms are folded first. Sums of products are exact with the dot product
instructions (VNNI, sdot); weights use all 8 bits, with which vpmaddubsw of older CPUs saturates.

Source: Jacob et al., CVPR 2018, arXiv 1712.05877; ONNX Runtime writes the nodes (onnxruntime.quantization). Correction
of biases: Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.2, with means that were measured.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from kerf import files, temporary
from kerf.deploy.frontend import memory, qdq, sizes
from kerf.deploy.frontend.clean import PASSES
from kerf.deploy.frontend.loading import load
from kerf.deploy.frontend.onnx_graph import Graph, Value
from kerf.deploy.frontend.opsets import OPSET
from kerf.deploy.frontend.passes.fold_affine import fold_affine
from kerf.deploy.frontend.passes.fold_batchnorm import fold_batchnorm
from kerf.deploy.frontend.passes.widen_half import widen_half
from kerf.deploy.frontend.soundness import explained
from kerf.deploy.quantise import ranges
from kerf.deploy.quantise.bias import corrected
from kerf.deploy.quantise.calibration import Calibration
from kerf.deploy.quantise.placement import UNROUNDED, named, placement, rounded
from kerf.deploy.quantise.samples import read
from kerf.errors import BadInput
from kerf.failures import one_line

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
WRITTEN = 3  # times a model's size: what ONNX Runtime's quantiser writes to infer shapes, and some room
BETWEEN = (
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Resize", "Pad", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split"),
)


@dataclass(frozen=True)
class Quantised:
    """The file that was written, how many samples its ranges come from, and how many layers compute on integers."""

    path: Path
    samples: int
    layers: int
    method: str

    def __str__(self) -> str:
        many = f"{self.samples} calibration sample{'' if self.samples == 1 else 's'}"
        return f"{self.path}: {self.layers} layers on 8-bit integers, ranges of {many} by {self.method}"


def quantise(
    path: str | Path,
    to: str | Path,
    calibration: str | Path | Calibration,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Quantised:
    """Writes the f32 network at ``path`` with Q/DQ to ``to``; its inputs and outputs stay f32, open sizes open.

    calibration: a folder of images, an .npz of arrays by input name (.npy for an only input), or a Calibration, which
    also says how images become numbers and how ranges are chosen. shapes: sizes of inputs that the file leaves open,
    for images.

    Raises FileNotFoundError, ImportError where images need Pillow, and BadInput for a file that is quantised already or
    has nothing to quantise, for a ``to`` that is ``path`` itself, and for samples or sizes that do not fit; then
    nothing is written.
    """
    path, to = Path(path), Path(to)
    if os.path.realpath(to) == os.path.realpath(path):  # of links in a circle, too
        raise BadInput(f"{to}: the f32 file itself, which would be lost; give another name for the quantised one")
    asked = calibration if isinstance(calibration, Calibration) else Calibration(Path(calibration))
    with explained(path):
        graph = plain(path)
        samples = read(asked, sized(path, graph, shapes or {}))
        model, tensors = graph.model(), _tensors(graph)
        try:
            seen = ranges.observed(model, tensors, samples)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        found = ranges.of(asked.method, model, seen, samples)
        try:
            content = _written(graph, {name: s.mean for name, s in seen.items()}, found)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        layers = sum(node.op_type in LAYERS for node in _layers(graph))
        return Quantised(files.write(to, content.SerializeToString()), len(samples), layers, asked.method)


def plain(path: Path) -> Graph:
    """The network cleaned and its batch norms folded. Raises BadInput where it cannot be quantised."""
    model = load(path)
    if qdq.is_quantised(model):
        raise BadInput(f"{path} is quantised already; compile it as it is, or quantise the f32 file it was made of")
    graph = Graph(model)
    memory.refuse(path, graph)  # before nodes go that nothing reads: ONNX Runtime runs them, too
    if graph.opset < OPSET:
        raise BadInput(
            f"{path} is of opset {graph.opset}, in which weights have one scale; export it with {OPSET} or more"
        )
    widen_half(graph)
    while sum(changed(graph) for changed in PASSES):
        graph.infer()
    fold_batchnorm(graph)
    fold_affine(graph)
    graph.infer()
    memory.refuse(path, graph)
    if not _layers(graph):
        raise BadInput(f"{path}: no convolution, Gemm or MatMul with a constant weight; there is nothing to quantise")
    return graph


def sized(path: Path, graph: Graph, shapes: Mapping[str, Sequence[int]]) -> list[Value]:
    """The inputs, with the sizes that are given for them. Raises BadInput for sizes that they cannot have."""
    asked = onnx.ModelProto()
    asked.graph.input.extend(graph.inputs)
    sizes.fix(path, asked, shapes, None)
    values = [graph.described(i.name) for i in graph.inputs]
    return [Value(v.name, v.dtype, tuple(shapes.get(v.name) or v.shape or ()) or None) for v in values]


def _layers(graph: Graph) -> list[onnx.NodeProto]:
    """Nodes with a weight that is known."""
    return [n for n in graph.nodes if n.op_type in LAYERS and n.input[1] in graph.constants]


def _kinds(graph: Graph) -> list[str]:
    """Operators that are quantised. Products of two activations and what stands around them, as in attention, lose too
    much on 8 bits: there layers alone are.
    """
    attention = any(n.op_type == "MatMul" and n.input[1] not in graph.constants for n in graph.nodes)
    return [*LAYERS, *(() if attention else BETWEEN)]


def _tensors(graph: Graph) -> list[str]:
    """Activations that may become integers: of f32, read or made by the nodes that are quantised."""
    kinds = set(_kinds(graph))
    names = (name for n in graph.nodes if n.op_type in kinds for name in (*n.input, *n.output) if name)
    f32 = onnx.TensorProto.FLOAT
    return [name for name in dict.fromkeys(names) if name not in graph.constants and graph.types.get(name) == f32]


def _written(graph: Graph, means: Mapping[str, np.ndarray], found: Mapping[str, ranges.Range]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData

    named(graph)
    model, place, kinds = corrected(graph, means), placement(graph), _kinds(graph)
    known = {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in found.items()}
    with _silent(), temporary.others("quantise", WRITTEN * model.ByteSize()):
        quantizer = QDQQuantizer(
            model,
            True,  # per channel
            False,  # no reduced range: it is for vpmaddubsw, and loses a bit everywhere
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, known),
            [],
            [*place.left, *(n.name for n in model.graph.node if _activations_alone(model, n))],
            kinds,
            {
                **{"WeightSymmetric": True, "ActivationSymmetric": False, "MatMulConstBOnly": True},
                "OpTypesToExcludeOutputQuantization": list(UNROUNDED),
            },
        )
        try:
            quantizer.quantize_model()
        except (ValueError, RuntimeError, KeyError) as error:
            raise BadInput(f"ONNX Runtime's quantiser cannot quantise it: {one_line(error)}") from error
        made = quantizer.model.model
        if "Mul" in kinds:  # else layers alone are on integers, and what follows them is within them
            rounded(made, place.read, found)
        quantizer.model.topological_sort()
    onnx.checker.check_model(made)
    return made


def _activations_alone(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """A layer whose weight is computed."""
    return node.op_type in LAYERS and node.input[1] not in {t.name for t in model.graph.initializer}


@contextmanager
def _silent() -> Iterator[None]:
    """ONNX Runtime's quantiser logs to the root."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
