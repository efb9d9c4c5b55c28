"""nn.Module -> one .onnx file that computes the same function. The only file of `deploy` that imports torch.

What the file promises to the next stage: fixed shapes, input "input", output "output", weights inside the file;
every convolution's weight is a plain OIHW initialiser, bit for bit the folded weight of the module, so that a pruned
block is N consecutive kernels of exact zeros; batch norm that follows a convolution directly is folded into it.
"""

import copy
import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from kerf import files
from kerf.deploy.frontend import qdq
from kerf.errors import BadInput

OPSET = 18
ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default)
FOLD = {**dict.fromkeys(CONVOLUTIONS, fuse_conv_bn_weights), ATEN.linear.default: fuse_linear_bn_weights}


TOLERANCE, COARSE = 1e-4, 1e-2  # of the largest output, for f32 and for a quantised network


def export(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    tolerance: float | None = None,
    grids: Mapping[str, qdq.Grid] | None = None,
    reference: nn.Module | None = None,
) -> Path:
    """Writes `model` in evaluation mode as ONNX for inputs of exactly `example`'s shape; returns the path.

    The model itself is not touched. The file appears only after it passed onnx.checker and ONNX Runtime agreed with
    torch on three inputs (`example`, standard normal, uniform): max |difference| <= tolerance * max |torch's output|.

    With `grids`, by module, these layers compute on integers (Q/DQ), and `reference`, on the CPU, is the network that
    does the same in torch. Rounding hides no difference below a step and makes a whole step of one at its edge: the
    tolerance is COARSE then, and ONNX Runtime computes node by node, as the file says, without fusing any.

    Raises ValueError (one line) if a weight is NaN or infinite, the model cannot be traced, does not return one
    tensor, has a convolution whose weight is not a parameter, or disagrees with ONNX Runtime.
    """
    refuse_nonfinite(model)
    plain = copy.deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format)
    plain.eval().requires_grad_(False)
    example = example.detach().to("cpu", torch.float32).contiguous()
    with quiet(), torch.no_grad():
        folded = fold_batchnorm(trace(copy.deepcopy(plain), example))
        flush_denormals(folded)
        file = convert(folded, example)
    check_weights(file, folded)
    if grids:
        file = qdq.insert(file, grids)
    content = file.SerializeToString()
    allowed = tolerance or (COARSE if grids else TOLERANCE)
    compare(content, reference.eval() if reference else plain, probes(example), allowed, fuse=not grids)
    return files.write(path, content)


def refuse_nonfinite(model: nn.Module) -> None:
    """Raises ValueError naming the first parameter or buffer with a NaN or an infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{name} has NaN or infinite values; export needs finite weights: train or load again")


def trace(model: nn.Module, example: Tensor) -> GraphModule:
    """The model as a graph of ATen calls on its own parameters, which keep their paths ("layer1.0.conv1.weight")."""
    try:
        with torch.no_grad():
            output = model(example)
        graph_module = torch.export.export(model, (example,)).module(check_guards=False)
    except Exception as error:  # whatever the model or the tracer throws, the caller gets one line
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"{type(model).__name__} cannot be traced with an input of shape {tuple(example.shape)}: {reason[0]}"
        ) from error
    if not isinstance(output, Tensor):
        raise BadInput(f"{type(model).__name__} returns {type(output).__name__}; export expects a single tensor")
    return graph_module


def fold_batchnorm(module: GraphModule) -> GraphModule:
    """Folds every batch norm that is the only reader of a convolution or linear into its weight and bias, in place.

    Works on the graph, so what counts is who reads what and not how modules are called or nested. A convolution with a
    second reader, or whose weight is used twice, keeps its batch norm. The arithmetic is float64, rounded once.
    """
    graph, parameters = module.graph, dict(module.named_parameters()) | dict(module.named_buffers())
    reads = [n.target for n in graph.nodes if n.op == "get_attr" for _ in n.users]
    uses = Counter(parameters[path].data_ptr() for path in reads if path in parameters)
    for node in list(graph.nodes):
        producer = node.args[0] if node.target is ATEN.batch_norm.default else None
        if not isinstance(producer, Node) or producer.target not in FOLD or len(producer.users) > 1:
            continue
        weight, bias = producer.args[1], producer.args[2] if len(producer.args) > 2 else None
        statistics = node.args[1:5]  # weight, bias, running mean, running variance
        sources = [s for s in (weight, bias, *statistics) if s is not None]
        if any(s.target not in parameters for s in sources):
            continue
        prefix = weight.target.removesuffix("weight")
        taken = bias is None and f"{prefix}bias" in parameters
        if taken or any(uses[parameters[s.target].data_ptr()] > 1 for s in (weight, bias) if s is not None):
            continue
        scale, shift, mean, variance = (parameters[s.target].double() if s is not None else None for s in statistics)
        old_bias = parameters[bias.target].double() if bias is not None else None
        old_weight, fuse = parameters[weight.target].double(), FOLD[producer.target]
        new_weight, new_bias = fuse(old_weight, old_bias, mean, variance, node.args[7], scale, shift)
        set_parameter(module, weight.target, new_weight)
        set_parameter(module, f"{prefix}bias", new_bias)
        with graph.inserting_before(producer):
            bias = graph.get_attr(f"{prefix}bias")
        producer.args = (producer.args[0], weight, bias, *producer.args[3:])
        node.replace_all_uses_with(producer)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def set_parameter(module: nn.Module, path: str, value: Tensor) -> None:
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, nn.Parameter(value.float().contiguous(), requires_grad=False))


def flush_denormals(module: nn.Module) -> None:
    """Sets weights below the smallest normal float32 (1.2e-38), and -0.0, to +0.0, in place.

    Weight decay drives dead weights into the denormal range, where a multiplication costs a CPU many times more, and
    a masked weight times a negative batch norm scale is -0.0.
    """
    smallest = torch.finfo(torch.float32).tiny
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data[tensor.abs() < smallest] = 0.0


def convert(module: GraphModule, example: Tensor) -> onnx.ModelProto:
    """The graph as ONNX, checked by onnx.checker; convolution nodes carry their module's path as name."""
    program = torch.export.export(module, (example,))
    file = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    ).model_proto
    del file.metadata_props[:]
    names = Counter()
    for item in (file.graph, *file.graph.node, *file.graph.value_info, *file.graph.input, *file.graph.output):
        del item.metadata_props[:]  # stack traces with the paths of the exporting machine
        item.doc_string = ""
    for node in file.graph.node:
        if len(node.input) > 1 and node.input[1].endswith(".weight"):
            path = node.input[1].removesuffix(".weight")
            node.name = f"{path}#{names[path]}" if names[path] else path
            names[path] += 1
    onnx.checker.check_model(file, full_check=True)
    return file


def check_weights(file: onnx.ModelProto, module: GraphModule) -> None:
    """Every convolution of the file reads an initialiser, and each folded weight is in the file bit for bit."""
    stored = {i.name: numpy_helper.to_array(i) for i in file.graph.initializer}
    for node in file.graph.node:
        if node.op_type == "Conv" and node.input[1] not in stored:
            raise BadInput(
                f"the weight of convolution {node.name} is computed by the network; export needs it as a parameter: "
                "bake masks and re-parametrisations into the weight first"
            )
    digests = {digest(a) for a in stored.values()}
    parameters = dict(module.named_parameters())
    for node in module.graph.nodes:
        if node.target in CONVOLUTIONS and digest(parameters[node.args[1].target].numpy()) not in digests:
            raise BadInput(
                f"{node.args[1].target} was altered by the ONNX exporter; this is a defect, please report it"
            )


def digest(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def probes(example: Tensor) -> Iterator[Tensor]:
    """Three inputs of the example's shape: itself, standard normal, uniform in [-1, 1)."""
    generator = torch.Generator().manual_seed(0)
    yield example
    yield torch.randn(example.shape, generator=generator)
    yield torch.rand(example.shape, generator=generator) * 2 - 1


def compare(
    content: bytes, reference: nn.Module, inputs: Iterator[Tensor], tolerance: float, fuse: bool = True
) -> None:
    """Raises ValueError unless ONNX Runtime and torch agree on every input within `tolerance` of torch's maximum."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for x in inputs:
        with torch.no_grad():
            expected = reference(x).numpy()
        (actual,) = session.run(None, {"input": x.numpy()})
        if actual.shape != expected.shape:
            raise BadInput(f"ONNX Runtime returns shape {actual.shape} where torch returns {expected.shape}")
        error = float(np.abs(actual - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
        if not error <= tolerance:  # also true for NaN
            raise BadInput(
                f"ONNX Runtime and torch differ by {error:.1e} relative, more than the {tolerance:.0e} allowed; "
                "nothing was written"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's warnings and log lines; its errors still come through as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
