"""Tensors between kerf's own functions lie in padded planes (kernels.layout); every other operator sees NCHW.

A function's arguments are brought into planes and its result back; a way back that only leads into planes again is
skipped, and what nobody reads any more is removed as dead code. From the stem to the pool nothing is ever moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.s_tir import SBlock, SBlockRealize
from tvm.target import Target

from kernels import planewise
from kernels.layout import pitch

BACK = "from_planes"


def shape_of(value: relax.Expr) -> tuple[int, ...]:
    return tuple(int(d) for d in value.ty.shape)


def reshaped(bb: relax.BlockBuilder, value: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
    return value if shape_of(value) == shape else bb.emit(relax.op.reshape(value, shape))


def call(
    bb: relax.BlockBuilder,
    function: relax.GlobalVar,
    images: Sequence[relax.Expr],
    rest: Sequence[relax.Expr],
    shape: tuple[int, ...],
    target: Target,
) -> relax.Expr:
    """Emit function(images[0], *rest, *images[1:]) on images in planes; its result, an image of ``shape``, as NCHW."""
    first, *others = [to_planes(bb, image, target) for image in images]
    n, c, h, w = shape
    out = relax.TensorType((n, c, pitch(h * w)), "float32")
    y = bb.emit(relax.call_tir(function, [first, *rest, *others], out))
    return from_planes(bb, y, shape, target)


def to_planes(bb: relax.BlockBuilder, image: relax.Expr, target: Target) -> relax.Expr:
    n, c, h, w = shape_of(image)
    if pitch(h * w) == h * w:
        return reshaped(bb, image, (n, c, h * w))
    source = bb.lookup_binding(image) if isinstance(image, relax.Var) else None
    if isinstance(source, relax.Call) and source.op == tvm.ir.Op.get("relax.call_tir"):
        function, (planes,) = source.args[0], source.args[1].fields if len(source.args[1].fields) == 1 else (None,)
        if function.name_hint.startswith(BACK):
            return planes
    function = add(bb, planewise.to_planes((n, c, h, w), target), "to_planes")
    return bb.emit(relax.call_tir(function, [image], relax.TensorType((n, c, pitch(h * w)), "float32")))


def from_planes(bb: relax.BlockBuilder, planes: relax.Expr, shape: tuple[int, ...], target: Target) -> relax.Expr:
    if pitch(shape[2] * shape[3]) == shape[2] * shape[3]:
        return reshaped(bb, planes, shape)
    function = add(bb, planewise.from_planes(shape, target), BACK)
    return bb.emit(relax.call_tir(function, [planes], relax.TensorType(shape, "float32")))


def add(bb: relax.BlockBuilder, func: tvm.tirx.PrimFunc, name: str) -> relax.GlobalVar:
    """The function in the module, in a root block: TVM looks into functions of one tensor, to see whether they are
    reshapes, and expects one.
    """
    body = SBlockRealize([], True, SBlock([], [], [], "root", func.body))
    return bb.add_func(func.with_body(body).without_attr("global_symbol"), name)
