"""dense_nc_quads_columns: fully connected layer on bytes; vectors run along output channels, for a few rows at a time.

Without an instruction that multiplies bytes exactly, inputs and weights are widened to 16 bits and multiplied in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu.dense_nc_dense_columns import is_matrix_product
from kerf.kernels.cpu.int8 import estimate
from kerf.kernels.cpu.int8.dot import DOTS, QUAD, add_pairs, dots
from kerf.kernels.cpu.int8.epilogue import Epilogue
from kerf.kernels.cpu.layout import in_planes
from kerf.kernels.cpu.machine import machine_of, parallel_loop
from kerf.kernels.lowering import REGISTERS
from kerf.kernels.problem import Problem
from kerf.kernels.vector import run

name = "dense_nc_quads_columns"


def refuses(p: Problem, target: Target) -> str | None:
    if reason := estimate.refuses(p):
        return reason
    if p.n:
        return "weights are block-sparse"
    return None if is_matrix_product(p) else f"{p.describe()} is no matrix product"


def configs(p: Problem, target: Target) -> Sequence[Config]:
    """Config "rows" of x at a time, "vectors" of outputs."""
    machine = machine_of(target)
    dot, (width, *_) = dots(machine)
    shapes = [(1, 4), (1, 8)] if p.batch == 1 else [(4, 2), (2, 4), (4, 3), (6, 1)]
    if machine.registers > 16 and p.batch > 1:
        shapes = [(4, 4), (8, 2), *shapes]
    return [{"dot": dot, "bytes": width, "rows": r, "vectors": v} for r, v in shapes]


def _together(c: Config) -> int:
    """Inputs that are multiplied at a time."""
    return 2 if DOTS[c["dot"]].paired else QUAD


def pack(p: Problem, w: np.ndarray, c: Config) -> dict[str, np.ndarray]:
    """w (O, I, 1, 1) -> data (blocks, groups of inputs, columns * inputs of a group) int8, filled up with 0."""
    columns, group = _columns(c), _together(c)
    blocks, groups = -(-p.out_channels // columns), -(-p.in_channels // group)
    padded = np.zeros((blocks * columns, groups * group), np.int8)
    padded[: p.out_channels, : p.in_channels] = w.reshape(p.out_channels, p.in_channels)
    return {
        "data": np.ascontiguousarray(padded.reshape(blocks, columns, groups, group).transpose(0, 2, 1, 3)).reshape(
            blocks, groups, -1
        )
    }


def _columns(c: Config) -> int:
    return c["vectors"] * c["bytes"] // QUAD


def prim_func(p: Problem, c: Config, target: Target) -> tvm.tirx.PrimFunc:
    columns, group, rows = _columns(c), _together(c), min(c["rows"], p.batch)
    blocks, groups = -(-p.out_channels // columns), -(-p.in_channels // group)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        data = T.arg("data", T.buffer((blocks, groups, columns * group), "int8"))
        epilogue = Epilogue(p)
        epilogue.declare_images()
        padded = T.alloc_buffer((p.batch * groups * group,), "uint8")
        with T.serial(0, p.batch) as image:
            with T.serial(0, p.in_channels) as i:
                T.buffer_store(padded, x[image, i, 0], [image * groups * group + i])
            for i in range(p.in_channels, groups * group):
                T.buffer_store(padded, T.uint8(0), [image * groups * group + i])
        emit = _Block(p, c, padded, data, epilogue, rows)
        with parallel_loop(target)(0, blocks) as b, T.serial(0, -(-p.batch // rows)) as i:
            emit.outputs(b, T.Bind(T.min(i * rows, p.batch - rows)))
    return builder.get()


class _Block:
    """The outputs of one block for ``rows`` rows of x."""

    def __init__(self, p: Problem, c: Config, padded, data, epilogue: Epilogue, rows: int):
        self.p, self.c, self.x, self.data, self.epilogue, self.rows = p, c, padded, data, epilogue, rows
        self.dot, self.width, self.vectors = DOTS[c["dot"]], c["bytes"], c["vectors"]
        self.lanes, self.columns, self.group = self.width // QUAD, _columns(c), _together(c)
        self.groups = -(-p.in_channels // self.group)

    def _at(self, r: int, v: int):
        return run((r * self.vectors + v) * self.lanes, self.lanes)

    def outputs(self, block, first) -> None:
        acc = T.alloc_buffer((self.rows * self.columns,), "int32", scope="local", annotations=REGISTERS)
        for r in range(self.rows):
            for v in range(self.vectors):
                T.buffer_store(acc, T.broadcast(T.int32(0), self.lanes), [self._at(r, v)])
        with T.serial(0, self.groups) as k:
            weights = [T.Bind(self._weights(block, k, v)) for v in range(self.vectors)]
            for r in range(self.rows):
                x = T.Bind(self._inputs(first + r, k))
                for v in range(self.vectors):
                    T.buffer_store(acc, self._add(acc[self._at(r, v)], x, weights[v]), [self._at(r, v)])
        self._store(acc, block, first)

    def _weights(self, block, k, v: int):
        if self.dot.paired:
            half = self.width // 2
            return T.cast(self.data[block, k, run(v * half, half)], f"int16x{half}")
        return self.data[block, k, run(v * self.width, self.width)]

    def _inputs(self, row, k):
        """A group's inputs in every lane."""
        x: Any = self.x[run((row * self.groups + k) * self.group, self.group)]
        if self.dot.paired:
            word = T.reinterpret("int32", T.cast(x, "int16x2"))
            return T.reinterpret(f"int16x{self.width // 2}", T.broadcast(word, self.lanes))
        if self.dot.signed:
            x = x ^ T.broadcast(T.uint8(128), QUAD)
        return T.reinterpret(f"int8x{self.width}", T.broadcast(T.reinterpret("int32", x), self.lanes))

    def _add(self, acc, x, weights):
        return (add_pairs if self.dot.paired else self.dot.add)(acc, x, weights, self.width)

    def _store(self, acc, block, first) -> None:
        p, epilogue, lanes = self.p, self.epilogue, self.lanes
        origin = T.Bind(block * self.columns)
        whole = p.out_channels // self.columns

        def vectors() -> None:
            for r in range(self.rows):
                for v in range(self.vectors):
                    channel = run(origin + v * lanes, lanes)
                    sums = acc[self._at(r, v)] + epilogue.start[channel]
                    epilogue.store(
                        sums, epilogue.steps(channel), (first + r) * p.out_channels + origin + v * lanes, lanes
                    )

        if p.out_channels % self.columns == 0:
            vectors()
            return
        sums = T.alloc_buffer((self.rows * self.columns,), "int32")
        with T.If(block < whole):
            with T.Then():
                vectors()
            with T.Else():
                for r in range(self.rows):
                    for v in range(self.vectors):
                        T.buffer_store(sums, acc[self._at(r, v)], [self._at(r, v)])
                    with T.serial(0, p.out_channels - whole * self.columns) as i:
                        channel = T.Bind(origin + i)
                        total = sums[r * self.columns + i] + epilogue.start[channel]
                        epilogue.store(total, epilogue.steps(channel), (first + r) * p.out_channels + channel, 1)
