"""Tensors between kerf's own functions lie in the form of their kernels (kerf.kernels.form); every other operator sees
NCHW.

A function's arguments are brought into it and its result back; then ways there and back are cancelled, so that from the
stem to the pool nothing is ever moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.s_tir import SBlock, SBlockRealize

from kerf.errors import BadInput
from kerf.kernels.form import Form, Shape
from kerf.kernels.pointwise.program import FLOAT

THERE, BACK = "into_form", "from_form"  # names of functions
MOVES = (THERE, BACK, "reshape")  # TVM legalizes relax.reshape to functions of this name
CALL_TIR = tvm.ir.Op.get("relax.call_tir")


def cancel(module: tvm.IRModule, form: Form) -> tvm.IRModule:
    """The module with "main" free of ways there and back: into the form and out of it, reshaped and reshaped again."""
    blocks = module["main"].body.blocks
    moved = {b.var: move for block in blocks for b in block.bindings if (move := _moved(b.value)) is not None}
    same = {}
    for var, (how, _) in moved.items():
        source = var
        while source in moved:
            last, source = moved[source]
            # equal sizes say nothing where the form orders pixels in another way: only NCHW is the same as NCHW
            alike = form.is_nchw or (how == THERE) == (last == BACK)
            if shape_of(source) == shape_of(var) and alike:
                same[var] = source
    module["main"] = _Replace(same).visit_expr(module["main"])
    return relax.transform.DeadCodeElimination(["main"])(module)


def _moved(value: relax.Expr) -> tuple[str, relax.Var] | None:
    """(how, the variable whose pixels ``value`` holds in another form or, an alias, the same)."""
    how = ""
    if isinstance(value, relax.Call) and value.op == CALL_TIR and value.args[0].name_hint.startswith(MOVES):
        how = next(name for name in MOVES if value.args[0].name_hint.startswith(name))
        value = value.args[1].fields[0]
    return (how, value) if isinstance(value, relax.Var) else None


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


def image_shape(value: relax.Expr) -> Shape:
    """shape_of an image."""
    n, c, h, w = shape_of(value)
    return n, c, h, w


def shape_of(value: relax.Expr) -> tuple[int, ...]:
    """Raises ValueError for a size that is known only when the network runs."""
    try:
        return tuple(int(d) for d in value.ty.shape)
    except TypeError as error:  # None, or a symbol
        raise BadInput("an operator's output has no fixed size (NonZero, Unique and the like)") from error


def dtype_of(value: relax.Expr) -> str:
    """numpy's name."""
    return str(value.ty.dtype)


def reshaped(bb: relax.BlockBuilder, value: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
    if isinstance(value, tvm.ir.GenericConst):
        return relax.const(value.value.numpy().reshape(shape))
    return value if shape_of(value) == shape else bb.emit(relax.op.reshape(value, shape))


def call(
    bb: relax.BlockBuilder,
    function: relax.GlobalVar,
    images: Sequence[relax.Expr],
    rest: Sequence[relax.Expr],
    shape: Shape,
    form: Form,
    dtype: str = FLOAT,
) -> relax.Expr:
    """Emit function(images[0], *rest, *images[1:]) on images in the kernels' form; its result, an image of ``shape``
    and ``dtype``, as NCHW.
    """
    first, *others = [into(bb, image, form) for image in images]
    y = bb.emit(relax.call_tir(function, [first, *rest, *others], form.type(shape, dtype)))
    return back(bb, y, shape, form, dtype)


def into(bb: relax.BlockBuilder, image: relax.Expr, form: Form) -> relax.Expr:
    """An NCHW image in the form."""
    shape, dtype = image_shape(image), dtype_of(image)
    function, kind = form.into(shape, dtype), form.type(shape, dtype)
    if function is None:
        return reshaped(bb, image, tuple(int(d) for d in kind.shape))
    return bb.emit(relax.call_tir(add(bb, function, THERE), [image], kind))


def back(bb: relax.BlockBuilder, value: relax.Expr, shape: Shape, form: Form, dtype: str = FLOAT) -> relax.Expr:
    """An image in the form as NCHW of ``shape`` and ``dtype``."""
    function = form.back(shape, dtype)
    if function is None:
        return reshaped(bb, value, shape)
    return bb.emit(relax.call_tir(add(bb, function, BACK), [value], relax.TensorType(shape, dtype)))


def add(bb: relax.BlockBuilder, func: tvm.tirx.PrimFunc, name: str) -> relax.GlobalVar:
    """The function in the module, in a root block: TVM looks into functions of one tensor, to see whether they are
    reshapes, and expects one.
    """
    body = SBlockRealize([], True, SBlock([], [], [], "root", func.body))
    func = func.with_body(body).without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
    return bb.add_func(func, name)
