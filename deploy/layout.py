"""Tensors between kerf's own functions lie in padded planes (kernels.layout); every other operator sees NCHW.

A function's arguments are brought into planes and its result back; then ways there and back are cancelled, so that from
the stem to the pool nothing is ever moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.s_tir import SBlock, SBlockRealize
from tvm.target import Target

from kernels import planewise
from kernels.layout import pitch

THERE, BACK = "to_planes", "from_planes"  # names of functions
MOVES = (THERE, BACK, "reshape")  # TVM legalizes relax.reshape to functions of this name
CALL_TIR = tvm.ir.Op.get("relax.call_tir")


def cancel(module: tvm.IRModule) -> tvm.IRModule:
    """The module with "main" free of ways there and back: planes to NCHW to planes, reshaped and reshaped again."""
    blocks = module["main"].body.blocks
    moved = {b.var: source for block in blocks for b in block.bindings if (source := _moved(b.value)) is not None}
    same = {}
    for var in moved:
        source = var
        while source in moved:
            source = moved[source]
            if shape_of(source) == shape_of(var):
                same[var] = source
    module["main"] = _Replace(same).visit_expr(module["main"])
    return relax.transform.DeadCodeElimination(["main"])(module)


def _moved(value: relax.Expr) -> relax.Var | None:
    """The variable whose pixels ``value`` holds, in another form or (an alias) the same."""
    if isinstance(value, relax.Call) and value.op == CALL_TIR and value.args[0].name_hint.startswith(MOVES):
        value = value.args[1].fields[0]
    return value if isinstance(value, relax.Var) else None


@relax.expr_functor.mutator
class _Replace(relax.PyExprMutator):
    def __init__(self, by: dict[relax.Var, relax.Var]):
        super().__init__()
        self._by = by

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        return super().visit_var_(self._by.get(var, var))

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> relax.Expr:
        other = self._by.get(var, var)
        visit = super().visit_dataflow_var_ if isinstance(other, relax.DataflowVar) else super().visit_var_
        return visit(other)


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
    function = add(bb, planewise.to_planes((n, c, h, w), target), THERE)
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
