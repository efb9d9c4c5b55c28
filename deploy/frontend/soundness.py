"""Whether a file is what ONNX says a model is. Never more than that: what ONNX Runtime runs is no bad input.

Attributes that contradict their operator are told at once, before anything acts on them. For all else ONNX Runtime is
the judge, which loads the file and optimises nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from kerf import children, failures
from kerf.deploy.frontend.onnx_graph import OWN, STANDARD, Graph, attributes, called, subgraphs
from kerf.errors import BadInput, KerfError
from kerf.failures import printable, useful

# operator -> numbers that an attribute has for each axis of the image
WINDOWED = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool")
PER_AXIS = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 2, "output_padding": 1, "output_shape": 1}
AT_LEAST_1 = ("kernel_shape", "strides", "dilations")
MOST_PADDING = 1 << 20  # pixels beside an image
LARGE = 200 << 20  # bytes
# What ONNX Runtime lacks, rather than the file: an operator of somebody's own, a version that is newer than it.
BEYOND = ("is not a registered function/op", "only *guarantees* support", "Unsupported model IR version")
MOST_DRAWN = 10**8  # numbers of an input that a witness is given


def refuse(path: Path, model: onnx.ModelProto) -> None:
    """Raises BadInput, which names the node, for attributes that contradict their operator, and for kerf's own
    operators, which no file brings along.
    """
    for node in _nodes(model.graph):
        if node.domain == OWN:
            raise BadInput(
                f"{path}: {node.op_type} {_name(node)} is an operator of kerf's own, which no file may hold; give "
                "the file that it was made of"
            )
        if node.op_type in WINDOWED and node.domain in STANDARD and (reason := _wrong_window(node)):
            raise BadInput(f"{path}: {node.op_type} {_name(node)} has {reason}; export the network again")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner)


def _name(node: onnx.NodeProto) -> str:
    return repr(printable(called(node) if node.name or node.output else "without a name"))


def _wrong_window(node: onnx.NodeProto) -> str | None:
    """What is wrong with how a convolution or a pooling moves its window."""
    try:
        given: dict[str, Any] = attributes(node)
    except (ValueError, TypeError):
        return "an attribute of no type"
    lists = {name: given[name] for name in PER_AXIS if name in given}
    for name, value in lists.items():
        if not isinstance(value, Sequence) or isinstance(value, bytes | str) or not all(type(v) is int for v in value):
            return f"the {name} {value!r}; expected a list of whole numbers"
    axes = {len(value) / PER_AXIS[name] for name, value in lists.items() if value}
    if len(axes) > 1:
        said = ", ".join(f"{name} {list(value)}" for name, value in lists.items() if value)
        return f"{said}, which are not of one number of axes"
    for name in AT_LEAST_1:
        if any(not 1 <= v < 2**31 for v in lists.get(name, ())):
            return f"the {name} {list(lists[name])}; expected numbers from 1 to 2,147,483,647"
    if any(abs(v) > MOST_PADDING for v in lists.get("pads", ())):
        return f"the pads {list(lists['pads'])}; expected at most {MOST_PADDING:,} pixels"
    group = given.get("group", 1)
    if type(group) is not int or group < 1:
        return f"the group {group!r}; expected at least 1"
    return None


def refuse_fatal(path: Path, model: onnx.ModelProto) -> None:
    """Raises BadInput for a file at which ONNX's shape inference ends the process, as at a Slice of sizes below
    0, which a window larger than its image makes. Tried in a child, where a file has both.
    """
    operators = {node.op_type for node in _nodes(model.graph)}
    if "Slice" not in operators or operators.isdisjoint(WINDOWED):
        return

    def work() -> None:
        with suppress(Exception):  # which is told when this process comes across it
            Graph(model)

    try:
        children.attempt(work, "ONNX's shape inference")
    except RuntimeError as error:
        raise BadInput(f"{path}: not a valid ONNX model ({printable(useful(str(error)))}); export it again") from error


def refuse_unsound(path: Path, graph: Graph) -> None:
    """Raises BadInput for a file that ONNX Runtime does not load, in its words or ONNX's own.

    Those with many weights are loaded there only where ONNX's inference or the types that the file states are against.
    """
    for name, shape in graph.shapes.items():
        if graph.producer(name) is not None and shape and any(isinstance(size, int) and size < 0 for size in shape):
            sizes = "x".join(map(str, shape))
            raise BadInput(f"{path}: {printable(name)!r} would be {sizes}: a window is larger than the image under it")
    said, suspicious = "", _contradicted(graph)
    try:
        onnx.shape_inference.infer_shapes(graph.inferred, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # its errors derive from Exception directly
        lines = [line for line in str(error).splitlines() if "(op_type" in line] or str(error).splitlines() or [""]
        said, suspicious = f"shapes do not fit together: {printable(useful(lines[-1]))}", True
    if not suspicious and sum(array.nbytes for array in graph.constants.values()) > LARGE:
        return
    if (reason := judged(path)) is not None:
        raise BadInput(f"{path}: {said or f'not a valid ONNX model ({reason}); export it again'}")


def _contradicted(graph: Graph) -> bool:
    """Whether the file says another type of a tensor than it has."""
    said = (*graph.original.graph.output, *graph.original.graph.value_info)
    kinds = [(v.type.tensor_type.elem_type, graph.types.get(v.name, 0)) for v in said if v.type.HasField("tensor_type")]
    return any(found and told != found for told, found in kinds)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Within, an error that is none of kerf's words is the file's where ONNX Runtime refuses that, too; else kerf's."""
    try:
        yield
    except (KerfError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = judged(path, runs=True) if failures.code(error) == failures.INTERNAL else None
        if reason is None:
            raise
        raise BadInput(f"{path}: ONNX Runtime does not run it ({reason}); export it again") from error


def judged(path: Path, runs: bool = False) -> str | None:
    """Why ONNX Runtime does not load the file, or where asked not run it; None where it does, and, if it need not run,
    where it is that which lacks something.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # else it prints, too, what it raises
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        if runs:
            session.run(None, {value.name: _zeros(value) for value in session.get_inputs()})
    except _Undrawn:
        return None
    except Exception as error:  # its errors derive from Exception directly
        lacking = type(error).__name__ == "NotImplemented" or any(word in str(error) for word in BEYOND)
        return None if lacking and not runs else printable(useful(str(error)))
    return None


class _Undrawn(Exception):
    pass


def _zeros(value: Any) -> np.ndarray:
    """For an input of a session, an open batch as 1. Raises _Undrawn for other open sizes, which may mean anything."""
    dtype = {"float": "float32", "double": "float64"}.get(kind := value.type[7:-1], kind)
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape or ()]
    if any(not isinstance(size, int) for size in (value.shape or ())[1:]):
        raise _Undrawn
    if dtype not in np.sctypeDict or math.prod(shape) > MOST_DRAWN:
        raise _Undrawn
    return np.zeros(shape, dtype)
