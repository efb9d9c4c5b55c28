"""A whole network as a GPU would run it, on the CPU: every function's CUDA source through g++, one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tvm
from tvm.target import Target

from kerf.kernels.cuda.host import cuda_on_host


def emulate(
    module: tvm.IRModule, packed: dict[str, np.ndarray], x: np.ndarray, target: Target, folder: Path
) -> np.ndarray:
    """The output of what kerf.deploy.compiler.lower made, for the image ``x``. ``folder`` keeps what was compiled."""
    values = dict(zip(module["main"].params, (x, *packed.values()), strict=True))
    launches: dict[str, cuda_on_host.Launch] = {}  # layers that are alike share a function
    for binding in (b for block in module["main"].body.blocks for b in block.bindings):
        callee, args = binding.value.args
        shape, func = [int(n) for n in binding.var.ty.shape], module[callee]
        given = [values[a] for a in args.fields]
        if callee.name_hint.startswith("reshape"):  # compiled for the host
            values[binding.var] = given[0].reshape(shape)
            continue
        name = callee.name_hint
        if name not in launches:
            launches[name] = cuda_on_host.lower(func, target)
            (folder / name).mkdir(exist_ok=True)
        arrays = dict(zip((p.name for p in func.params), given, strict=False))
        y = np.empty(shape, str(binding.var.ty.dtype))
        values[binding.var] = cuda_on_host.run(launches[name], arrays, y, folder / name).y
    return values[binding.var]
