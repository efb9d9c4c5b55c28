"""Operators that kerf has TIR for: pooling, and the product that ends squeeze-excite. TVM legalizes the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import tvm
from tvm import relax

from kerf.deploy.compiler import layout_changes
from kerf.deploy.compiler.layout_changes import image_shape, shape_of
from kerf.kernels.form import Form
from kerf.kernels.problem import Problem


def legalize(module: tvm.IRModule, form: Form) -> tvm.IRModule:
    """The module with every operator as a call of a TIR function."""
    ours = {"relax.mean": _mean, "relax.multiply": _scale, "relax.nn.max_pool2d": _max_pool}
    legalized = relax.transform.LegalizeOps({op: _either(op, own, form) for op, own in ours.items()})(module)
    return layout_changes.cancel(legalized, form)


def _either(op: str, own: Callable, form: Form) -> Callable:
    """kerf's function where it takes the call, else TVM's."""
    default = tvm.ir.Op.get(op).get_attr("FLegalize")

    def legalize_op(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        y = own(bb, call, form) if _static(call) else None
        return default(bb, call) if y is None else y

    return legalize_op


def _static(call: relax.Call) -> bool:
    """Whether operands and result are fp32 tensors of known sizes."""
    try:
        values = [call, *call.args]
        return all(str(v.ty.dtype) == "float32" and all(int(d) > 0 for d in v.ty.shape) for v in values)
    except (AttributeError, TypeError):
        return False


def _mean(bb: relax.BlockBuilder, call: relax.Call, form: Form) -> relax.Expr | None:
    """Over height and width."""
    axes = call.attrs.axis
    if axes is None or len(shape_of(call.args[0])) != 4 or sorted(int(a) % 4 for a in axes) != [2, 3]:
        return None
    shape = n, c, _, _ = image_shape(call.args[0])
    function = layout_changes.add(bb, form.mean(shape), "mean")
    y = layout_changes.call(bb, function, call.args[:1], [], (n, c, 1, 1), form)
    return layout_changes.reshaped(bb, y, shape_of(call))


def _scale(bb: relax.BlockBuilder, call: relax.Call, form: Form) -> relax.Expr | None:
    """An image times one number per channel."""
    x, factor = sorted(call.args, key=lambda a: -math.prod(shape_of(a)))
    if len(shape_of(x)) != 4:
        return None
    shape = n, c, h, w = image_shape(x)
    if shape_of(factor) != (n, c, 1, 1) or (h, w) == (1, 1):
        return None
    return layout_changes.call(bb, layout_changes.add(bb, form.scale(shape), "scale"), [x, factor], [], shape, form)


def _max_pool(bb: relax.BlockBuilder, call: relax.Call, form: Form) -> relax.Expr | None:
    a, (n, c, h, w) = call.attrs, image_shape(call.args[0])
    if (a.layout, a.out_layout) != ("NCHW", "NCHW"):
        return None
    kernel, stride, dilation = (_pair(getattr(a, name)) for name in ("pool_size", "strides", "dilation"))
    top, left, bottom, right = map(int, a.padding)
    p = Problem(n, c, h, w, c, kernel, stride, (top, left, bottom, right), dilation, groups=c)
    if p.out_shape != shape_of(call):
        return None  # ceil_mode with a window over the edge
    return layout_changes.call(
        bb, layout_changes.add(bb, form.max_pool(p), "max_pool"), call.args, [], p.out_shape, form
    )


def _pair(values: Iterable) -> tuple[int, int]:
    first, second = map(int, values)
    return first, second
