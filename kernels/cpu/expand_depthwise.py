"""A 1x1 convolution and the depthwise convolution that alone reads it, in one function: a few channels at a time.

MobileNets widen an image with a 1x1 convolution before a depthwise one: 96 channels of 112 x 112 are 4.8 MB, which one
kernel writes to the last-level cache and the next reads back, and both wait for it longer than they compute. Here the
channels of one register tile, all their pixels, go through the depthwise filter while they are in the second-level
cache, and the wide image exists nowhere.
"""

from __future__ import annotations

import math

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from kerf.kernels.config import Config
from kerf.kernels.cpu import conv2d_nchw_bsr_direct, conv2d_nchw_dense_direct, conv2d_nchw_depthwise
from kerf.kernels.cpu.emit.direct import Emit
from kerf.kernels.cpu.emit.output import Output
from kerf.kernels.cpu.emit.register_tile import Source
from kerf.kernels.cpu.emit.weight_format import Rows
from kerf.kernels.cpu.layout import in_planes, out_planes
from kerf.kernels.cpu.machine import Machine, machine_of
from kerf.kernels.problem import Problem

# A tile's channels read all their inputs' planes, where tiles of pixels would read a few pixels of them: so many planes
# of the input cost as much as one that is written and read back.
MOST_SWEEPS = 6
FIRST = {k.name: k for k in (conv2d_nchw_bsr_direct, conv2d_nchw_dense_direct)}


def refuses(first: Problem, second: Problem, machine: Machine) -> str | None:
    """None when ``second`` may follow ``first`` in one function, else why not."""
    if first.kernel != (1, 1) or first.stride != (1, 1) or any(first.padding) or first.groups > 1:
        return f"{first.describe()} is no plain 1x1 convolution"
    if not second.depthwise or first.out_shape != second.in_shape:
        return f"{second.describe()} is no depthwise convolution of {first.describe()}"
    if first.residual or second.residual:
        return "a residual sum in between"
    size = 4 * math.prod(out_planes(first)[1:])
    if size < machine.l2:  # it stays in cache on its way from kernel to kernel
        return f"{size} bytes between them, fewer than {machine.l2}"
    sweeps = (first.nnzb if first.n else first.in_channels * first.out_channels / 8) / first.out_channels
    return f"{sweeps:.1f} planes read for each one spared, more than {MOST_SWEEPS}" if sweeps > MOST_SWEEPS else None


def config(first: Problem, kernel: str, target: Target) -> Config:
    """The first configuration of the kernel that has all of a tile's channels done before the next."""
    return next(c for c in FIRST[kernel].configs(first, target) if c["order"] == "blocks" and c["pixels"] != "rows")


def prim_func(
    first: Problem, kernel: str, c: Config, second: Problem, depthwise: Config, target: Target
) -> tvm.tirx.PrimFunc:
    """Function (x, *packed weights of first, its bias, depthwise weights, their bias, y)."""
    weights, machine = FIRST[kernel].weights(first, c, target), machine_of(target)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(first), "float32"))
        weights.declare()
        bias = T.arg("bias", T.buffer((first.out_channels,), "float32"))
        filters, filter_bias = conv2d_nchw_depthwise.declare(second, "filter")
        y = T.arg("y", T.buffer(out_planes(second), "float32"))
        after = conv2d_nchw_depthwise.Channels(
            second, depthwise, machine, filters, filter_bias, Output.of(second, y, None)
        )
        flat = T.decl_buffer((math.prod(in_planes(first)),), "float32", data=x.data)
        with T.serial(0, first.batch) as image:
            origin = image * math.prod(in_planes(first)[1:])

            def both(rows: Rows, image=image, origin=origin) -> None:
                channel = T.Bind(rows.channel(weights))
                between = _Between(first, rows.count, channel)
                Emit(first, c, machine, weights, bias, between).over_tiles(Source(flat, origin, image), rows)
                after.channels(between.y, 0, image, channel, rows.count)

            Emit(first, c, machine, weights, bias, Output(first, None)).each(both)
    return builder.get()


class _Between(Output):
    """The planes of ``rows`` channels from ``channel``, in memory of their own."""

    def __init__(self, p: Problem, rows: int, channel):
        super().__init__(p, T.alloc_buffer((rows * out_planes(p)[2],), "float32"))
        self.channel = channel

    def plane(self, image, channel):
        return (channel - self.channel) * self.pitch
