"""Intermediate images in memory that is allocated once, when a network is loaded.

TVM's virtual machine makes every intermediate tensor anew on every call, which is about 1 % of a MobileNet's time. The
plan of which tensors share memory stays TVM's.
"""

from __future__ import annotations

import tvm
from tvm import relax

BUFFERS, RUN = "buffers", "run"
STORAGE, TENSOR, KILL = (tvm.ir.Op.get(f"relax.vm.{name}") for name in ("alloc_storage", "alloc_tensor", "kill_object"))


@tvm.transform.module_pass(opt_level=0)
def keep_buffers(module: tvm.IRModule, _context) -> tvm.IRModule:
    """Adds to "main" a twin "run", which takes the intermediate tensors behind the weights, and "buffers", which makes
    them. "main" stays, for callers at the other end of a connection.

    The tensor that is returned, and what shares its memory, is still made on every call.
    """
    run, buffers = (relax.utils.copy_with_new_vars(module["main"]) for _ in range(2))
    _, tensors, others = _sorted(run)
    body = relax.SeqExpr([relax.BindingBlock(others)], run.body.body)
    module[RUN] = _function(RUN, [*run.params, *tensors], body, run.ret_ty, run)
    made, tensors, _ = _sorted(buffers)
    body = relax.SeqExpr([relax.BindingBlock(made)], relax.Tuple(tensors))
    module[BUFFERS] = _function(BUFFERS, [], body, body.body.ty, buffers)
    return module


def _function(name: str, params: list[relax.Var], body: relax.Expr, result, like: relax.Function) -> relax.Function:
    function = relax.Function(params, body, result, like.is_pure, like.attrs)
    return function.with_attr("global_symbol", name).with_attr("num_input", len(params))


def _sorted(function: relax.Function) -> tuple[list[relax.Binding], list[relax.Var], list[relax.Binding]]:
    """(what allocates memory that can be kept, the tensors in it, all else)."""
    bindings = [b for block in function.body.blocks for b in block.bindings]
    value = {b.var: b.value for b in bindings}
    result = value.get(function.body.body)
    while isinstance(result, relax.Call) and result.op != TENSOR:  # a view
        result = value.get(result.args[0])
    returned = result.args[0] if isinstance(result, relax.Call) else None

    def kept(b: relax.Binding) -> bool:
        op = b.value.op if isinstance(b.value, relax.Call) else None
        return (op == STORAGE and b.var != returned) or (op == TENSOR and b.value.args[0] != returned)

    made = [b for b in bindings if kept(b)]
    gone = {b.var for b in made}
    others = [b for b in bindings if b.var not in gone and not (_kills(b) and b.value.args[0] in gone)]
    return made, [b.var for b in made if b.value.op == TENSOR], others


def _kills(b: relax.Binding) -> bool:
    return isinstance(b.value, relax.Call) and b.value.op == KILL
