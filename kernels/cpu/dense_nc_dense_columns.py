"""dense_nc_dense_columns: fully connected layer on dense weights; vectors run along output channels.

Memory-bound at batch 1: the weights are packed so that they are read once, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.layout import in_planes, out_planes
from kerf.kernels.cpu.machine import machine_of, parallel_loop
from kerf.kernels.epilogue import activate
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem, computes
from kerf.kernels.vector import run, splat

name = "dense_nc_dense_columns"


def is_matrix_product(p: Problem) -> bool:
    """A 1x1 convolution of a 1x1 image: y (n, O) = x (n, I) w^T."""
    return p.groups == 1 and p.kernel == (1, 1) and (p.height, p.width) == (1, 1) and not any(p.padding)


def refuses(p: Problem, target: Target) -> str | None:
    if reason := computes(p, "f32"):
        return reason
    if p.n:
        return "weights are block-sparse"
    return None if is_matrix_product(p) else f"{p.describe()} is no matrix product"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    return [{"lanes": lanes, "vectors": v} for v in (4, 8, 2) for lanes in machine_of(target).lanes]


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (O, I, 1, 1) -> data (ceil(O / columns), I, columns), zero-padded."""
    columns = c["lanes"] * c["vectors"]
    blocks = -(-p.out_channels // columns)
    padded = np.zeros((blocks * columns, p.in_channels), np.float32)
    padded[: p.out_channels] = w.reshape(p.out_channels, p.in_channels)
    return {"data": np.ascontiguousarray(padded.reshape(blocks, columns, p.in_channels).transpose(0, 2, 1))}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    lanes, vectors = c["lanes"], c["vectors"]
    columns = lanes * vectors
    blocks = -(-p.out_channels // columns)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "float32"))
        data = T.arg("data", T.buffer((blocks, p.in_channels, columns), "float32"))
        bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(out_planes(p), "float32")) if p.residual else None
        y = T.arg("y", T.buffer(out_planes(p), "float32"))
        with T.serial(0, p.batch) as image, parallel_loop(target)(0, blocks) as b:
            acc = T.alloc_buffer((columns,), "float32", scope="local", annotations=REGISTERS)
            runs = [run(v * lanes, lanes) for v in range(vectors)]
            for at in runs:
                T.buffer_store(acc, splat(0, lanes), [at])
            with T.serial(0, p.in_channels) as k:
                value = T.Bind(splat(x[image, k, 0], lanes))
                for at in runs:
                    T.buffer_store(acc, acc[at] + data[b, k, at] * value, [at])
            with T.serial(0, T.min(columns, p.out_channels - b * columns)) as i:
                o = b * columns + i
                value = acc[i] + bias[o]
                if residual is not None:
                    value = value + residual[image, o, 0]
                T.buffer_store(y, activate(p.epilogue, value, 1), [image, o, 0])
    return builder.get()
