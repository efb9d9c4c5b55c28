"""Layers: what their problem leaves out of types."""

import numpy as np
import pytest

from kerf.deploy.frontend.network import Layer
from kerf.errors import BadInput
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType

pytestmark = pytest.mark.quick

U8, I8 = TensorType("u8", 0.02, 3), TensorType("i8", axis=0)
P = Problem(1, 6, 4, 4, 8, x=U8.unit, w=I8, y=F32)
WEIGHT, BIAS = np.ones((8, 6, 1, 1), np.int8), np.zeros(8, np.float32)


def test_numbers_of_types_are_the_layers():
    layer = Layer("conv", "conv", P, WEIGHT, BIAS, {"x": U8}, np.full(8, 0.1, np.float32))
    assert layer.types["x"].scale == 0.02


@pytest.mark.parametrize(
    ("types", "scale", "said"),
    [
        ({}, np.ones(8), "conv: x is u8 and has no scale"),
        ({"x": TensorType("u8", 0.02), "w": I8}, np.ones(8), "x is u8 .scale 0.02., but u8 .scale 1.0, zero 0."),
        ({"x": U8, "w": I8, "y": U8}, np.ones(8), "y is u8 .*, but f32"),
        ({"x": U8, "w": I8}, None, "expected .8,., one per output channel"),
        ({"x": U8, "w": I8}, np.ones(6), "scales of its weights .6,."),
    ],
)
def test_a_layer_without_its_numbers_is_refused(types, scale, said):
    with pytest.raises(BadInput, match=said):
        Layer("conv", "conv", P, WEIGHT, BIAS, types, scale)
