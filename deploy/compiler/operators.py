"""Calls of kerf's own functions in place of ONNX nodes that are no layers (kerf.deploy.frontend.operators)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax

from kerf.deploy.compiler import layout_changes
from kerf.deploy.compiler.layout_changes import image_shape
from kerf.deploy.frontend.operators.operation import Operation
from kerf.kernels.form import Form

Values = Sequence[relax.Expr]


def emit(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    """The operation's result, of NCHW images as everywhere between calls (layout_changes)."""
    return EMIT[operation.function](bb, form, operation, inputs)


def _view(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    return layout_changes.reshaped(bb, inputs[0], operation.shape)


def _mean(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    shape = n, c, _, _ = image_shape(inputs[0])
    function = layout_changes.add(bb, form.mean(shape), "mean")
    y = layout_changes.call(bb, function, inputs, [], (n, c, 1, 1), form)
    return layout_changes.reshaped(bb, y, operation.shape)


def _scale(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    shape = image_shape(inputs[0])
    return layout_changes.call(bb, layout_changes.add(bb, form.scale(shape), "scale"), inputs, [], shape, form)


def _max_pool(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    p = operation.arguments["problem"]
    function = layout_changes.add(bb, form.max_pool(p), "max_pool")
    return layout_changes.call(bb, function, inputs, [], p.out_shape, form)


EMIT: dict[str, Callable[[relax.BlockBuilder, Form, Operation, Values], relax.Expr]] = {
    "view": _view,
    "mean": _mean,
    "scale": _scale,
    "max_pool": _max_pool,
}
