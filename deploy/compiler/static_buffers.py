"""Intermediate images in memory that is allocated once, when a network is loaded.

TVM's virtual machine makes every intermediate tensor anew on every call, which is about 1 % of a MobileNet's time. The
plan of which tensors share memory stays TVM's.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from kerf.deploy.compiler import merge

BUFFERS, RUN = "buffers", "run"
STORAGE, TENSOR, KILL = (tvm.ir.Op.get(f"relax.vm.{name}") for name in ("alloc_storage", "alloc_tensor", "kill_object"))


def keep_buffers(fresh: Sequence[Sequence[bool]]) -> tvm.transform.Pass:
    """Adds to every piece's "main" a twin "run", which takes the intermediate tensors behind the weights, and
    "buffers", which makes them. "main" stays, for callers at the other end of a connection.

    ``fresh``: per piece and output, whether it is a new tensor on every call, with all that shares its memory: what the
    network's user gets. Other outputs, which the next piece reads, are always the same memory.
    """

    @tvm.transform.module_pass(opt_level=0)
    def _keep(module: tvm.IRModule, _context) -> tvm.IRModule:
        for i, new in enumerate(fresh):
            main = module[merge.name(i)]
            run, buffers = (relax.utils.copy_with_new_vars(main) for _ in range(2))
            _, tensors, others = _sorted(run, new)
            body = relax.SeqExpr([relax.BindingBlock(others)], run.body.body)
            named = merge.name(i, RUN)
            module[named] = _function(named, [*run.params, *tensors], body, run.ret_ty, run)
            made, tensors, _ = _sorted(buffers, new)
            body = relax.SeqExpr([relax.BindingBlock(made)], relax.Tuple(tensors))
            named = merge.name(i, BUFFERS)
            module[named] = _function(named, [], body, body.body.ty, buffers)
        return module

    return _keep


def _function(name: str, params: list[relax.Var], body: relax.Expr, result, like: relax.Function) -> relax.Function:
    function = relax.Function(params, body, result, like.is_pure, like.attrs)
    return function.with_attr("global_symbol", name).with_attr("num_input", len(params))


def _sorted(
    function: relax.Function, fresh: Sequence[bool]
) -> tuple[list[relax.Binding], list[relax.Var], list[relax.Binding]]:
    """(what allocates memory that can be kept, the tensors in it, all else)."""
    bindings = [b for block in function.body.blocks for b in block.bindings]
    value = {b.var: b.value for b in bindings}
    results = value.get(function.body.body, function.body.body)
    results = list(results.fields) if isinstance(results, relax.Tuple) else [function.body.body]
    returned = {memory for result, new in zip(results, fresh, strict=True) if new for memory in _memory(result, value)}

    def kept(b: relax.Binding) -> bool:
        op = b.value.op if isinstance(b.value, relax.Call) else None
        return (op == STORAGE and b.var not in returned) or (op == TENSOR and b.value.args[0] not in returned)

    made = [b for b in bindings if kept(b)]
    gone = {b.var for b in made}
    others = [b for b in bindings if b.var not in gone and not (_kills(b) and b.value.args[0] in gone)]
    return made, [b.var for b in made if b.value.op == TENSOR], others


def _memory(result: relax.Expr, value: dict[relax.Var, relax.Expr]) -> list[relax.Var]:
    """The storage that a result lies in; none for an argument that is passed on."""
    made = value.get(result)
    while isinstance(made, relax.Call) and made.op != TENSOR:  # a view
        made = value.get(made.args[0])
    return [made.args[0]] if isinstance(made, relax.Call) else []


def _kills(b: relax.Binding) -> bool:
    return isinstance(b.value, relax.Call) and b.value.op == KILL
