"""ONNX's checker, but for what ONNX Runtime takes and the checker does not: inputs and outputs of unknown rank, tensors
without a type, entries without a name.
"""

from __future__ import annotations

from pathlib import Path

import onnx

UNNAMED = "an entry without a name"


def check(model: onnx.ModelProto, path: Path | None = None) -> None:
    """Raises onnx.checker.ValidationError. ``path``: where the model lies, as a large one would be serialised for it.

    Inputs and outputs of unknown rank are lent a shape meanwhile, tensors without a type one, and what has no name,
    which no node can read, one that is not there.
    """
    nameless = [v for v in (*model.graph.input, *model.graph.value_info) if not v.name]
    for value in nameless:
        value.name = UNNAMED
    values = [v for v in (*model.graph.input, *model.graph.output) if v.type.WhichOneof("value") == "tensor_type"]
    untyped = [v.type for v in (*model.graph.output, *model.graph.value_info) if not v.type.WhichOneof("value")]
    for kind in untyped:  # ONNX Runtime infers them
        kind.tensor_type.elem_type = onnx.TensorProto.FLOAT
        kind.tensor_type.shape.SetInParent()
    bare = [v.type.tensor_type for v in values if not v.type.tensor_type.HasField("shape")]
    for kind in bare:
        kind.shape.SetInParent()
    onnx.checker.check_model(model if bare or untyped or nameless or path is None else str(path))
    for kind in untyped:
        kind.Clear()
    for kind in bare:
        kind.ClearField("shape")
    for value in nameless:
        value.name = ""
