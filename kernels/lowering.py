"""The one way kernels are compiled.

TVM's StorageRewrite drops annotations of allocations, and an allocation without them becomes a heap workspace: the
accumulators of a register tile would live in memory, at a quarter of the speed. So that pass is off; these functions
allocate little and each buffer once, so it has nothing to share.
"""

from __future__ import annotations

import tvm
from tvm.target import Target

# Keeps a local buffer on the stack, where LLVM turns it into registers.
REGISTERS = {"disable_lower_builtin": True}


def pass_context() -> tvm.transform.PassContext:
    """On top of the caller's own configuration, e.g. bound checks."""
    config = dict(tvm.transform.PassContext.current().config)
    return tvm.transform.PassContext(opt_level=3, config={**config, "tirx.disable_storage_rewrite": True})


def compile_func(func: tvm.tirx.PrimFunc, target: Target) -> tvm.runtime.Module:
    """One kernel as a runtime module with the entry "main"."""
    with pass_context():
        return tvm.compile(tvm.IRModule({"main": func}), target=target).mod
