"""nn.Module -> one .onnx file that computes the same function. With from_torch/ all of `deploy` that imports torch.

What the file promises to the next stage: fixed shapes, input "input", output "output" where there is one of each, names
of arguments and keys where there are more, weights inside the file;
every convolution's weight is a plain OIHW initialiser, bit for bit the folded weight of the module, so that a pruned
block is N consecutive kernels of exact zeros; batch norm that follows a convolution directly is folded into it.
"""

import copy
import hashlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from kerf import files
from kerf.arguments import arguments
from kerf.deploy.from_torch.plain_weights import plain_copy
from kerf.deploy.from_torch.signature import answer, float32, input_names, output_names, tensors
from kerf.deploy.from_torch.traced import (
    CONVOLUTIONS,
    flush_denormals,
    fold_batchnorm,
    fold_computed_weights,
    module_of,
    reason,
    tensors_of,
    trace,
)
from kerf.deploy.frontend import qdq
from kerf.errors import BadInput, Unsupported

OPSET = 18
TOLERANCE, COARSE = 1e-4, 1e-2  # of the largest output, for f32 and for a quantised network
LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    tolerance: float | None = None,
    grids: Mapping[str, qdq.Grid] | None = None,
    reference: nn.Module | None = None,
) -> Path:
    """Writes `model` in evaluation mode as ONNX for inputs of exactly `example`'s shape; returns the path.

    `model` is any torch module that takes tensors of floats, such as images (B, C, H, W): `example` is one, a tuple of
    several, or a dict by the names of arguments. It returns one, or tuples, lists, dicts or dataclasses of them; the
    file's outputs have the names of the keys, or output_0 and so on. The module is left as it was: in training mode, on
    its device, with its hooks. Weights that it computes from parameters (masks of torch.nn.utils.prune, weight_norm,
    spectral_norm, parametrisations, masks in its forward) are written as values.

    The file appears only after it passed onnx.checker and ONNX Runtime agreed with torch on three inputs (`example`,
    standard normal, uniform): max |difference| <= tolerance * max |torch's output|; integers and truth
    values are equal.

    With `grids`, by module, these layers compute on integers (Q/DQ), and `reference`, on the CPU, is the network that
    does the same in torch. Rounding hides no difference below a step and makes a whole step of one at its edge: the
    tolerance is COARSE then, and ONNX Runtime computes node by node, as the file says, without fusing any.

    Raises BadInput, a ValueError of one line, if a weight is NaN or infinite, the model fails on the example or
    disagrees with ONNX Runtime; and Unsupported, a BadInput, if the model cannot be copied or traced, takes or returns
    anything but tensors, has a convolution whose weight depends on the input or an operator that ONNX lacks.
    """
    check_arguments(model, example)
    example = float32(example)
    with quiet(), torch.no_grad():
        plain = plain_copy(model)
        refuse_nonfinite(plain)
        traced, output = trace(copy.deepcopy(plain), example)
        inputs = input_names(plain, example)
        outputs = output_names(output, inputs)
        folded = fold_batchnorm(fold_computed_weights(traced))
        flush_denormals(folded)
        file = convert(folded, example, inputs, outputs)
    check_weights(file, folded)
    if grids:
        file = qdq.insert(file, grids)
    content = file.SerializeToString()
    allowed = tolerance or (COARSE if grids else TOLERANCE)
    compare(content, reference.eval() if reference else plain, probes(example), allowed, inputs, fuse=not grids)
    return files.write(path, content)


def check_arguments(model: object, example: object) -> None:
    if not isinstance(model, nn.Module):
        raise BadInput(f"export expects a torch.nn.Module, got {type(model).__name__}")
    leaves = tree_leaves(example)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        came = next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)), type(example).__name__)
        raise BadInput(f"export expects an example input: a tensor, or a tuple or a dict of them, got {came}")
    for leaf in leaves:
        if not leaf.is_floating_point():
            raise Unsupported(
                f"the example input is of {leaf.dtype}; export expects one of floats: kerf computes in f32"
            )


def refuse_nonfinite(model: nn.Module) -> None:
    """Raises ValueError naming the first parameter or buffer with a NaN or an infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{name} has NaN or infinite values; export needs finite weights: train or load again")


def convert(module: GraphModule, example: Any, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The graph as ONNX, checked by onnx.checker; convolution nodes carry their module's path as name."""
    program = torch.export.export(module, *arguments(example))
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    except Exception as error:  # of many types, with pages of advice to torch's developers
        raise Unsupported(refusal(module, error)) from error
    assert exported is not None  # it is None only where dynamo=False
    file = exported.model_proto
    del file.metadata_props[:]
    names: Counter[str] = Counter()
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


def refusal(module: GraphModule, error: BaseException) -> str:
    """One line on why torch's exporter failed: the operator that ONNX has no form for and the module that calls it."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", str(cause))
        if found:
            operator = found[1].replace("::", ".").rpartition(".")[2]
            callers = [n for n in module.graph.nodes if any(t.endswith(operator) for t in str(n.target).split("."))]
            place = f" of module {module_of(callers[0])}" if callers and module_of(callers[0]) else ""
            return f"ONNX has no form of operator {found[1]}{place}; replace it by operators that it has"
    return f"torch's ONNX exporter failed: {reason(causes[-1])}; replace the operator that it names, or export a part"


def check_weights(file: onnx.ModelProto, module: GraphModule) -> None:
    """Every convolution of the file reads an initialiser, and each folded weight is in the file bit for bit."""
    stored = {i.name: numpy_helper.to_array(i) for i in file.graph.initializer}
    for node in file.graph.node:
        if node.op_type == "Conv" and node.input[1] not in stored:
            raise Unsupported(
                f"the weight of convolution {node.name} is computed by the network from its input; export needs it as "
                "a parameter"
            )
    digests, tensors = {digest(a) for a in stored.values()}, tensors_of(module)
    for node in module.graph.nodes:
        if node.target not in CONVOLUTIONS:
            continue
        name = str(node.args[1].target)
        if name in tensors and digest(tensors[name].numpy()) not in digests:
            raise BadInput(f"{name} was altered by the ONNX exporter; this is a defect, please report it")


def digest(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def probes(example: Any) -> Iterator[Any]:
    """Three inputs of the example's shapes: itself, standard normal, uniform in [-1, 1)."""
    generator = torch.Generator().manual_seed(0)
    yield example
    yield tree_map(lambda t: torch.randn(t.shape, generator=generator), example)
    yield tree_map(lambda t: torch.rand(t.shape, generator=generator) * 2 - 1, example)


def compare(
    content: bytes,
    reference: nn.Module,
    examples: Iterator[Any],
    tolerance: float,
    inputs: list[str],
    fuse: bool = True,
) -> None:
    """Raises ValueError unless ONNX Runtime and torch agree on every example within `tolerance` of torch's maximum."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of ONNX Runtime's own types
        raise Unsupported(
            f"ONNX Runtime cannot run the exported network: {reason(error)}; nothing was written"
        ) from error
    read = {node.name for node in session.get_inputs()}
    for example in examples:
        with torch.no_grad():
            expected = [t.numpy() for t in tensors(answer(reference, example))]
        fed = {name: t.numpy() for name, t in zip(inputs, tensors(example), strict=True) if name in read}
        for output, actual, wanted in zip(session.get_outputs(), session.run(None, fed), expected, strict=True):
            agree("" if len(expected) == 1 else f" in {output.name}", actual, wanted, tolerance)


def agree(where: str, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if actual.shape != expected.shape:
        raise BadInput(f"ONNX Runtime returns shape {actual.shape}{where} where torch returns {expected.shape}")
    if expected.dtype.kind != "f":
        if actual.dtype != expected.dtype or not np.array_equal(actual, expected):
            raise BadInput(
                f"ONNX Runtime returns {actual.dtype}{where} that differ from torch's {expected.dtype} in "
                f"{np.count_nonzero(actual != expected)} of {expected.size} places; nothing was written"
            )
        return
    apart = float(np.abs(actual - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
    if not apart <= tolerance:  # also true for NaN
        raise BadInput(
            f"ONNX Runtime and torch differ{where} by {apart:.1e} relative, more than the {tolerance:.0e} allowed; "
            "nothing was written"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's warnings, log lines and listings; its errors still come through as exceptions."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
