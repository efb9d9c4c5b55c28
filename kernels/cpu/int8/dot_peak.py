"""The core's peak on bytes: a loop of independent sums of four products and nothing else."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cpu.int8.dot import DOTS, QUAD, dots
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.lowering import REGISTERS, compile_func

CHAINS = 8  # enough to hide the latency, and few enough for 16 registers
STEPS = 1 << 16


def macs_per_us(target: Target, repeat: int = 7) -> float:
    """Measured multiply-accumulates of bytes per microsecond of one core of this machine."""
    name, (width, *_) = dots(machine_of(target))
    lanes = width // QUAD
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer((1 + CHAINS, width), "int8"))
        y = T.arg("y", T.buffer((CHAINS, lanes), "int32"))
        acc = T.alloc_buffer((CHAINS * lanes,), "int32", scope="local", annotations=REGISTERS)
        runs = [T.ramp(i * lanes, 1, lanes) for i in range(CHAINS)]
        for i, run in enumerate(runs):
            T.buffer_store(acc, y[i, T.ramp(0, 1, lanes)], [run])
        with T.serial(0, STEPS) as step:
            # other pixels in every step, or the products would be taken out of the loop
            pixels = T.Bind(x[0, T.ramp(0, 1, width)] ^ T.broadcast(T.cast(step, "int8"), width))
            for i, run in enumerate(runs):
                weights = T.Bind(x[1 + i, T.ramp(0, 1, width)])  # its own, or all chains would share a product
                T.buffer_store(acc, DOTS[name].add(acc[run], pixels, weights, width), [run])
        for i, run in enumerate(runs):
            T.buffer_store(y, acc[run], [i, T.ramp(0, 1, lanes)])
    module = compile_func(builder.get(), target)
    arrays = [np.ones((1 + CHAINS, width), np.int8), np.ones((CHAINS, lanes), np.int32)]
    args = [tvm.runtime.tensor(a) for a in arrays]
    seconds = module.time_evaluator("main", tvm.cpu(), number=1, repeat=repeat)(*args).results
    return CHAINS * width * STEPS / (min(seconds) * 1e6)
