"""The core's multiply-add peak: a loop of independent multiply-adds on registers and nothing else."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.lowering import REGISTERS, compile_func

CHAINS = 12  # enough independent chains to hide the latency of two multiply-add pipes
STEPS = 1 << 16


def macs_per_us(target: Target, repeat: int = 7) -> float:
    """Measured fp32 multiply-accumulates per microsecond of one core of this machine."""
    lanes = machine_of(target).lanes[0]
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer((2, lanes), "float32"))
        y = T.arg("y", T.buffer((CHAINS, lanes), "float32"))
        acc = T.alloc_buffer((CHAINS * lanes,), "float32", scope="local", annotations=REGISTERS)
        runs = [T.ramp(i * lanes, 1, lanes) for i in range(CHAINS)]
        for i, run in enumerate(runs):
            T.buffer_store(acc, y[i, T.ramp(0, 1, lanes)], [run])
        a, b = T.Bind(x[0, T.ramp(0, 1, lanes)]), T.Bind(x[1, T.ramp(0, 1, lanes)])
        with T.serial(0, STEPS):
            for run in runs:
                T.buffer_store(acc, acc[run] * a + b, [run])
        for i, run in enumerate(runs):
            T.buffer_store(y, acc[run], [i, T.ramp(0, 1, lanes)])
    module = compile_func(builder.get(), target)
    arrays = [np.full((2, lanes), 0.5, np.float32), np.ones((CHAINS, lanes), np.float32)]
    args = [tvm.runtime.tensor(a) for a in arrays]
    seconds = module.time_evaluator("main", tvm.cpu(), number=1, repeat=repeat)(*args).results
    return CHAINS * lanes * STEPS / (min(seconds) * 1e6)
