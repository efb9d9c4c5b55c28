"""Operators that kerf has TIR for: pooling, and the product that ends squeeze-excite. TVM legalizes the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import tvm
from tvm import relax
from tvm.s_tir import SBlock, SBlockRealize
from tvm.target import Target

from kernels import planewise
from kernels.problem import Problem


def legalize(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """The module with every operator as a call of a TIR function."""
    ours = {"relax.mean": _mean, "relax.multiply": _scale, "relax.nn.max_pool2d": _max_pool}
    return relax.transform.LegalizeOps({op: _either(op, own, target) for op, own in ours.items()})(module)


def _either(op: str, own: Callable, target: Target) -> Callable:
    """kerf's function where it takes the call, else TVM's."""
    default = tvm.ir.Op.get(op).get_attr("FLegalize")

    def legalize_op(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        built = own(call, target) if _static(call) else None
        if built is None:
            return default(bb, call)
        func, args, shapes = built
        function = bb.add_func(_in_block(func.without_attr("global_symbol")), op.rpartition(".")[2])
        # the functions take planes or flat arrays, whatever the rank of the tensors around them
        args = [bb.emit(relax.op.reshape(a, s)) for a, s in zip(args, shapes)]
        out = bb.emit(relax.call_tir(function, args, relax.TensorType(shapes[-1], "float32")))
        return relax.op.reshape(out, _shape(call))

    return legalize_op


def _in_block(func: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """In a root block: TVM looks into functions of one tensor, to see whether they are reshapes, and expects one."""
    return func.with_body(SBlockRealize([], True, SBlock([], [], [], "root", func.body)))


def _shape(value: relax.Expr) -> tuple[int, ...]:
    return tuple(int(d) for d in value.ty.shape)


def _static(call: relax.Call) -> bool:
    """Whether operands and result are fp32 tensors of known sizes."""
    try:
        values = [call, *call.args]
        return all(str(v.ty.dtype) == "float32" and all(int(d) > 0 for d in v.ty.shape) for v in values)
    except (AttributeError, TypeError):
        return False


def _mean(call: relax.Call, target: Target):
    shape, axes = _shape(call.args[0]), call.attrs.axis
    if axes is None or len(shape) != 4 or sorted(int(a) % 4 for a in axes) != [2, 3]:
        return None
    planes, pixels = shape[0] * shape[1], shape[2] * shape[3]
    return planewise.mean(planes, pixels, target), [call.args[0]], [(planes, pixels), (planes,)]


def _scale(call: relax.Call, target: Target):
    x, factor = sorted(call.args, key=lambda a: -math.prod(_shape(a)))
    shape = _shape(x)
    if len(shape) != 4 or _shape(factor) != (*shape[:2], 1, 1) or shape[2:] == (1, 1):
        return None
    planes, pixels = shape[0] * shape[1], shape[2] * shape[3]
    return planewise.scale(planes, pixels, target), [x, factor], [(planes, pixels), (planes,), (planes, pixels)]


def _max_pool(call: relax.Call, target: Target):
    a, (n, c, h, w) = call.attrs, _shape(call.args[0])
    if (a.layout, a.out_layout) != ("NCHW", "NCHW"):
        return None
    ints = {k: tuple(int(v) for v in getattr(a, k)) for k in ("pool_size", "strides", "padding", "dilation")}
    where = dict(stride=ints["strides"], padding=ints["padding"], dilation=ints["dilation"])
    p = Problem(n, c, h, w, c, ints["pool_size"], **where, groups=c)
    if p.out_shape != _shape(call):
        return None  # ceil_mode with a window over the edge
    return planewise.max_pool(p, target), [call.args[0]], [p.in_shape, p.out_shape]
