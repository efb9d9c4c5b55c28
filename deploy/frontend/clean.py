"""An .onnx file in the one form that everything here reads: loaded, sizes fixed, float32, constants folded.

load -> sizes -> float32 -> branches, identities, Q/DQ, constants until nothing changes. What ONNX Runtime computes of
the result is what it computes of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from kerf.deploy.frontend import memory, sizes, soundness
from kerf.deploy.frontend.loading import load
from kerf.deploy.frontend.onnx_graph import Graph
from kerf.deploy.frontend.passes.drop_identities import drop_identities, drop_unread
from kerf.deploy.frontend.passes.fold_constants import fold_constants
from kerf.deploy.frontend.passes.inline_branches import inline_branches
from kerf.deploy.frontend.passes.qlinear import expand_qlinear
from kerf.deploy.frontend.passes.widen_half import widen_half
from kerf.errors import BadInput

WIDENED = "kerf.widened"  # key of a model's metadata
PASSES = (inline_branches, drop_identities, expand_qlinear, fold_constants, drop_unread)
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def read(path: Path, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None) -> onnx.ModelProto:
    """The file at ``path``, cleaned; its inputs and outputs keep their names and types.

    shapes: sizes of inputs by name. batch: what free first sizes become (1 when None). Other sizes may stay free
    (kerf.deploy.frontend.sizes.free_sizes). A float16 network computes in float32 (``is_widened``).

    Raises FileNotFoundError, or BadInput for a file that is no valid model, whose data lie outside its folder, that has
    no such input, or whose weights are not finite.
    """
    return read_graph(path, shapes, batch).model()


def read_graph(
    path: Path, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None, runs: bool = False
) -> Graph:
    """As ``read``, to be edited; without a copy of the weights. ``runs``: the file will be run here, so that BadInput
    is raised for a node that there is no memory for, also where nothing reads it: ONNX Runtime runs that, too.
    """
    model = load(path)
    with soundness.explained(path):
        sizes.fix(path, model, shapes or {}, batch)
        soundness.refuse_fatal(path, model)
        try:
            graph = Graph(model)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        soundness.refuse_unsound(path, graph)
        if runs:
            memory.refuse(path, graph)
        if widen_half(graph):
            model.metadata_props.add(key=WIDENED, value="float16 computed in float32")
        while sum(changed(graph) for changed in PASSES):  # all of them, each round
            graph.infer()
        _refuse_infinite(path, graph)
        return graph


def is_widened(model: onnx.ModelProto) -> bool:
    """Whether the file's float16 was turned into float32: results differ from its own by rounding to float16."""
    return any(entry.key == WIDENED for entry in model.metadata_props)


def write(path: Path, to: Path, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None) -> None:
    """The cleaned file: what dense engines are raced on, so that all know its shapes."""
    onnx.save(read(path, shapes, batch), str(to))


def _refuse_infinite(path: Path, graph: Graph) -> None:
    """Of weights alone: a mask may hold infinity, and a bound."""
    for node in graph.nodes:
        for name in node.input if node.op_type in WEIGHTED else ():
            array = graph.constants.get(name)
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise BadInput(f"{path}: weight {name!r} holds NaN or infinity; expected finite numbers")
