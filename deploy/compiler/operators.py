"""Calls of kerf's own functions in place of ONNX nodes that are no layers (kerf.deploy.frontend.operators)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from tvm import relax

from kerf.deploy.compiler import layout_changes
from kerf.deploy.compiler.layout_changes import dtype_of, image_shape, reshaped, shape_of
from kerf.deploy.frontend.operators.elementwise import as_image
from kerf.deploy.frontend.operators.operation import Operation
from kerf.kernels.form import Form, WholeForm
from kerf.kernels.pointwise.program import CHANNEL, IMAGE, PLANE
from kerf.kernels.tensor_type import F32

Values = Sequence[relax.Expr]


def emit(bb: relax.BlockBuilder, form: Form, operation: Operation, tensors: Values) -> relax.Expr:
    """The operation's result from its ``tensors``: NCHW, as everywhere between calls (layout_changes)."""
    given = iter(tensors)
    inputs = [next(given) if isinstance(x, str) else relax.const(x) for x in operation.inputs]
    return EMIT[operation.function](bb, form, operation, inputs)


def _view(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    return reshaped(bb, inputs[0], operation.shape)


def _mean(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    n, c, *pixels = shape_of(inputs[0])
    shape = n, c, math.prod(pixels[:-1]), pixels[-1]  # of a row, too
    function = layout_changes.add(bb, form.mean(shape, operation.arguments.get("type", F32)), "mean")
    y = layout_changes.call(bb, function, [reshaped(bb, inputs[0], shape)], [], (n, c, 1, 1), form)
    return reshaped(bb, y, operation.shape)


def _scale(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    shape = image_shape(inputs[0])
    return layout_changes.call(bb, layout_changes.add(bb, form.scale(shape), "scale"), inputs, [], shape, form)


def _softmax(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    n, c, *pixels = shape_of(inputs[0])
    shape = n, c, math.prod(pixels[:-1]), pixels[-1]
    function = layout_changes.add(bb, cast(WholeForm, form).softmax(shape), "softmax")
    y = layout_changes.call(bb, function, [reshaped(bb, inputs[0], shape)], [], shape, form)
    return reshaped(bb, y, operation.shape)


def _max_pool(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    p = operation.arguments["problem"]
    function = layout_changes.add(bb, form.max_pool(p), "max_pool")
    y = layout_changes.call(bb, function, [reshaped(bb, inputs[0], p.in_shape)], [], p.out_shape, form, p.dtype)
    return reshaped(bb, y, operation.shape)


def _average_pool(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    p, divisors = operation.arguments["problem"], operation.arguments["divisors"]
    factors = relax.const((1 / divisors).astype(np.float32)[None, None])
    kind = operation.arguments.get("type", F32)
    function = layout_changes.add(bb, cast(WholeForm, form).average_pool(p, kind), "average_pool")
    images = [reshaped(bb, inputs[0], p.in_shape), factors]
    return reshaped(bb, layout_changes.call(bb, function, images, [], p.out_shape, form), operation.shape)


def _pointwise(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    f, shape = operation.arguments["pointwise"], as_image(operation.shape)
    n, c, h, w = shape
    sizes = {IMAGE: shape, PLANE: (n, c, 1, 1), CHANNEL: (1, c, 1, 1)}
    parts = [(n, part, h, w) for part in f.parts or (c,)]
    images = [reshaped(bb, x, s) for x, s in zip(inputs, [*parts, *(sizes[kind] for kind in f.operands[1:])])]
    function = layout_changes.add(bb, cast(WholeForm, form).pointwise(f, shape), "pointwise")
    return reshaped(bb, layout_changes.call(bb, function, images, [], shape, form, f.result), operation.shape)


def _lookup(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    shape, dtypes = as_image(operation.shape), (dtype_of(inputs[0]), dtype_of(inputs[1]))
    function = layout_changes.add(bb, cast(WholeForm, form).lookup(shape, dtypes), "lookup")
    y = layout_changes.call(bb, function, [reshaped(bb, inputs[0], shape)], inputs[1:], shape, form, dtypes[1])
    return reshaped(bb, y, operation.shape)


def _planes(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    """Tensors of five dimensions are images whose channels are in groups."""
    n, *groups, h, w = shape_of(inputs[0])
    shape, dtype = (n, math.prod(groups), h, w), dtype_of(inputs[0])
    image, found = reshaped(bb, inputs[0], shape), []
    for order, out in zip(operation.arguments["orders"], operation.shapes):
        channels = math.prod(out[1:-2])
        function = layout_changes.add(bb, cast(WholeForm, form).planes(order, shape, channels, dtype), "planes")
        y = layout_changes.call(bb, function, [image], [], (n, channels, h, w), form, dtype)
        found.append(reshaped(bb, y, out))
    return relax.Tuple(found) if len(found) > 1 else found[0]


def _enlarge(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    shape, dtype = image_shape(inputs[0]), dtype_of(inputs[0])
    function = cast(WholeForm, form).enlarge(operation.arguments["factors"], shape, dtype)
    out = as_image(operation.shape)
    return layout_changes.call(bb, layout_changes.add(bb, function, "enlarge"), inputs, [], out, form, dtype)


def _spread(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    shape, dtype = image_shape(inputs[0]), dtype_of(inputs[0])
    factor, steps = operation.arguments["factor"], operation.arguments["steps"]
    function = cast(WholeForm, form).spread(factor, steps, shape, dtype)
    out = as_image(operation.shape)
    return layout_changes.call(bb, layout_changes.add(bb, function, "spread"), inputs, [], out, form, dtype)


def _interpolate(bb: relax.BlockBuilder, form: Form, operation: Operation, inputs: Values) -> relax.Expr:
    rows, columns = operation.arguments["rows"], operation.arguments["columns"]
    function, arrays = cast(WholeForm, form).interpolate(rows, columns, image_shape(inputs[0]))
    added = layout_changes.add(bb, function, "interpolate")
    constants = [relax.const(array) for array in arrays]
    return layout_changes.call(bb, added, inputs, constants, as_image(operation.shape), form)


EMIT: dict[str, Callable[[relax.BlockBuilder, Form, Operation, Values], relax.Expr]] = {
    "view": _view,
    "mean": _mean,
    "scale": _scale,
    "softmax": _softmax,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "pointwise": _pointwise,
    "lookup": _lookup,
    "planes": _planes,
    "enlarge": _enlarge,
    "spread": _spread,
    "interpolate": _interpolate,
}
