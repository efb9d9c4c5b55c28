"""Compiled pieces of a network in one library: modules of one function "main" each -> one module of several.

Functions that are equal are kept once: the twelve blocks of a transformer share their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import relax

MAIN = "main"


def name(i: int, of: str = MAIN) -> str:
    """What the function of kerf's i-th piece is called."""
    return of if i == 0 else f"{of}_{i}"


def merge(modules: Sequence[tvm.IRModule]) -> tvm.IRModule:
    """The functions "main" as name(0), name(1) …, and what they call."""
    builder = relax.BlockBuilder(modules[0])
    kept = {_Key(f): var for var, f in modules[0].functions.items() if isinstance(f, tvm.tirx.PrimFunc)}
    for i, module in enumerate(modules[1:], 1):
        renamed: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar] = {}
        for var, function in module.functions.items():
            if not isinstance(function, tvm.tirx.PrimFunc):
                continue
            key = _Key(function)
            if key not in kept:
                kept[key] = builder.add_func(function.without_attr("global_symbol"), var.name_hint)
            renamed[var] = kept[key]
        main = _Rename(renamed).visit_expr(module[MAIN])
        builder.add_func(main.with_attr("global_symbol", name(i)), name(i))
    return builder.get()


class _Key:
    """A function by its structure: equal for equal code."""

    def __init__(self, function: tvm.tirx.PrimFunc):
        self.function = function.without_attr("global_symbol") if "global_symbol" in function.attrs else function

    def __hash__(self) -> int:
        return hash(tvm_ffi.structural_hash(self.function))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and bool(tvm_ffi.structural_equal(self.function, other.function))


@relax.expr_functor.mutator
class _Rename(relax.PyExprMutator):
    """Calls of functions by their names in the merged module."""

    def __init__(self, by: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar]):
        super().__init__()
        self._by = by

    def visit_global_var_(self, var: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self._by.get(var, var)
