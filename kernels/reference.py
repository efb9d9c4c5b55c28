"""Slow, obvious numpy truth for every Problem. Never optimised."""

from __future__ import annotations

import numpy as np

from kerf.kernels.problem import Problem

ACTIVATION = {
    "none": lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "relu6": lambda v: np.clip(v, 0, 6),
    "hardsigmoid": lambda v: np.clip(v / 6 + 0.5, 0, 1),
    "hardswish": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "silu": lambda v: v / (1 + np.exp(-v)),
}


def conv2d(p: Problem, x: np.ndarray, w: np.ndarray, bias: np.ndarray, residual: np.ndarray | None = None):
    """y (n, O, Ho, Wo) in float64 from x (n, I, H, W), w (O, I/groups, kh, kw), bias (O,)."""
    top, left, bottom, right = p.padding
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    w = w.astype(np.float64)
    y = np.zeros(p.out_shape)
    ho, wo = p.out_height, p.out_width
    og, ig = p.out_channels // p.groups, p.in_channels // p.groups
    for g in range(p.groups):
        out, inp = slice(g * og, (g + 1) * og), slice(g * ig, (g + 1) * ig)
        for r in range(p.kernel[0]):
            for s in range(p.kernel[1]):
                r0, s0 = r * p.dilation[0], s * p.dilation[1]
                window = x[:, inp, r0 : r0 + ho * p.stride[0] : p.stride[0], s0 : s0 + wo * p.stride[1] : p.stride[1]]
                y[:, out] += np.einsum("oi,nihw->nohw", w[out, :, r, s], window)
    y += bias.astype(np.float64).reshape(1, -1, 1, 1)
    if residual is not None:
        y += residual
    return ACTIVATION[p.activation](y)
