"""dense_nc_bsr_rows: fully connected layer on 1xN blocks; vectors run along the N outputs of a block row.

Blocks are taken several at a time into separate accumulators, since one chain of multiply-adds would wait for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.bsr import BSR
from kerf.kernels.config import Config
from kerf.kernels.cpu.dense_nc_dense_columns import is_matrix_product
from kerf.kernels.cpu.layout import in_planes, out_planes
from kerf.kernels.cpu.machine import machine_of, parallel_loop
from kerf.kernels.epilogue import activate
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem, computes
from kerf.kernels.vector import run, splat

name = "dense_nc_bsr_rows"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := computes(p, "f32"):
        return reason
    if not p.n:
        return "weights are dense"
    return None if is_matrix_product(p) else f"{p.describe()} is no matrix product"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    """Config "chains": blocks in flight."""
    widest = machine_of(target).lanes[0]
    lanes = next(v for v in (widest, widest // 2, widest // 4, 2, 1) if v and p.n % v == 0)
    return [{"lanes": lanes, "chains": chains} for chains in (4, 8, 2) if chains * p.n // lanes <= 16] or [
        {"lanes": lanes, "chains": 1}
    ]


def pack(p: Problem, w: BSR, c: Config) -> dict[str, np.ndarray]:
    if w.nnzb == 0:
        return {"data": np.zeros((1, p.n), np.float32), "indices": np.zeros(1, np.int32), "indptr": w.indptr}
    return {"data": np.ascontiguousarray(w.data[:, :, 0]), "indices": w.indices, "indptr": w.indptr}


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    lanes, chains = c["lanes"], c["chains"]
    rows = -(-p.out_channels // p.n)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "float32"))
        data = T.arg("data", T.buffer((max(p.nnzb, 1), p.n), "float32"))
        indices = T.arg("indices", T.buffer((max(p.nnzb, 1),), "int32"))
        indptr = T.arg("indptr", T.buffer((rows + 1,), "int32"))
        bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(out_planes(p), "float32")) if p.residual else None
        y = T.arg("y", T.buffer(out_planes(p), "float32"))

        with T.serial(0, p.batch) as image, parallel_loop(target)(0, rows) as b:
            acc = T.alloc_buffer((chains * p.n,), "float32", scope="local", annotations=REGISTERS)

            def add_block(chain, j, acc=acc, image=image):
                value = T.Bind(splat(x[image, indices[j], 0], lanes))
                for r in range(0, p.n, lanes):
                    at = run(chain * p.n + r, lanes)
                    T.buffer_store(acc, acc[at] + data[j, run(r, lanes)] * value, [at])

            for r in range(0, chains * p.n, lanes):
                T.buffer_store(acc, splat(0, lanes), [run(r, lanes)])
            begin = T.Bind(indptr[b])
            count = T.Bind(indptr[b + 1] - begin)
            with T.serial(0, count // chains) as group:
                for chain in range(chains):
                    add_block(chain, begin + group * chains + chain)
            with T.serial(0, count % chains) as rest:
                add_block(0, begin + count // chains * chains + rest)
            for chain in range(1, chains):
                for r in range(0, p.n, lanes):
                    T.buffer_store(acc, acc[run(r, lanes)] + acc[run(chain * p.n + r, lanes)], [run(r, lanes)])
            with T.serial(0, T.min(p.n, p.out_channels - b * p.n)) as i:
                o = b * p.n + i
                value = acc[i] + bias[o]
                if residual is not None:
                    value = value + residual[image, o, 0]
                T.buffer_store(y, activate(p.epilogue, value, 1), [image, o, 0])
    return builder.get()
