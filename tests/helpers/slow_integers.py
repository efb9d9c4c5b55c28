"""A kernel for every layer of integers, number by number: what lies around layers is tested without fast ones."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from kerf.deploy.compiler import choice
from kerf.kernels import backends
from kerf.kernels.cpu.layout import in_planes, out_planes
from kerf.kernels.epilogue import activate

name = "conv2d_nchw_integers_slow"
NUMBERS = "x_zero", "y_scale", "y_zero", "residual_scale", "residual_zero", "middle_scale", "middle_zero"


def refuses(p, target):
    return None if p.x.quantised else "floats"  # blocks are stored with their zeros


def configs(p, target):
    return [{}]


def pack(layer):
    """Products of scales are float32's, as in the reference."""
    kinds = [layer.types.get(key) for key in ("x", "y", "residual_type", "middle")]
    kinds[2] = kinds[2] or kinds[1]
    x, y, residual, middle = ((1.0, 0) if k is None else (k.scale, k.zero or 0) for k in kinds)
    numbers = np.array([x[1], *y, *residual, *middle], np.float32)
    scale = np.float32(x[0]) * layer.weight_scale
    arrays = {"weight": layer.weight.astype(np.int8), "scale": scale.astype(np.float32), "numbers": numbers}
    return arrays | {"bias": layer.bias.astype(np.float32)}


def prim_func(p, c, target):
    own = p.residual_type or p.y
    top, left, _, _ = p.padding
    og, ig = p.out_channels // p.groups, p.in_channels // p.groups
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        x = T.arg("x", T.buffer(in_planes(p), "uint8"))
        w = T.arg("w", T.buffer(p.weight_shape, "int8"))
        scale = T.arg("scale", T.buffer((p.out_channels,), "float32"))
        numbers = T.arg("numbers", T.buffer((len(NUMBERS),), "float32"))
        bias = T.arg("bias", T.buffer((p.out_channels,), "float32"))
        residual = T.arg("residual", T.buffer(out_planes(p), own.numpy)) if p.residual else None
        y = T.arg("y", T.buffer(out_planes(p), p.y.numpy))
        x_zero, y_scale, y_zero, r_scale, r_zero, m_scale, m_zero = (numbers[i] for i in range(len(NUMBERS)))
        acc = T.alloc_buffer((1,), "int32")
        with T.grid(p.batch, p.out_channels, p.out_height, p.out_width) as (n, o, i, j):
            T.buffer_store(acc, T.int32(0), [0])
            with T.grid(ig, *p.kernel) as (k, r, s):
                row = T.Bind(i * p.stride[0] + r * p.dilation[0] - top)
                column = T.Bind(j * p.stride[1] + s * p.dilation[1] - left)
                with T.If(tirx.all(row >= 0, row < p.height, column >= 0, column < p.width)), T.Then():
                    number = T.cast(x[n, o // og * ig + k, row * p.width + column], "int32")
                    term = (number - T.cast(x_zero, "int32")) * T.cast(w[o, k, r, s], "int32")
                    T.buffer_store(acc, acc[0] + term, [0])
            at = [n, o, i * p.out_width + j]
            total = T.cast(T.cast(acc[0], "float32"), "float64") * T.cast(scale[o], "float64")
            value = T.cast(total + T.cast(bias[o], "float64"), "float32")
            if p.middle is not None:
                value = (_bytes(T.nearbyint(value / m_scale) + m_zero) - m_zero) * m_scale
            if residual is not None and own.quantised:
                value = value + (T.cast(residual[at], "float32") - r_zero) * r_scale
            elif residual is not None:
                value = value + residual[at]
            value = T.Bind(activate(p.epilogue, value, 1))
            if p.y.quantised:
                steps = T.nearbyint(value / y_scale) + y_zero
                value = T.cast(_bytes(steps), "uint8")
            T.buffer_store(y, value, at)
    return builder.get()


def _bytes(steps):
    return T.min(T.max(steps, T.float32(0)), T.float32(255))


@pytest.fixture
def slow_integers(monkeypatch):
    """Layers of integers have this kernel, and no other."""
    others, own = choice.Choice.pack, sys.modules[__name__]
    with_own = replace(backends.CPU, kernels=(own, *backends.CPU.kernels))
    monkeypatch.setitem(backends.BACKENDS, "llvm", with_own)
    monkeypatch.setitem(backends.BY_NAME, name, own)
    monkeypatch.setattr(
        choice.Choice, "pack", lambda self, layer: pack(layer) if self.kernel == name else others(self, layer)
    )
