"""Ranges of tensors, by examples that can be worked by hand."""

import numpy as np
import onnx
import pytest

from kerf.deploy.quantise import ranges
from kerf.deploy.quantise.calibration import METHODS
from tests.helpers.onnx_files import file, node

pytestmark = pytest.mark.quick


def test_all_methods_are_there():
    assert tuple(ranges.METHODS) == METHODS


def counted(values, least, most):
    return np.histogram(values, ranges.BINS, (least, most))[0]


def test_a_percentile_leaves_out_what_is_rare():
    values = np.concatenate([np.linspace(-1, 2, 100_000), [100.0]])
    least, most = ranges.percentile(counted(values, -1, 100), -1, 100)
    width = 101 / ranges.BINS
    assert least == -1
    assert 2 <= most <= 2 + 2 * width


def test_zero_is_within_whatever_is_left_out():
    values = np.full(10_000, 5.0)
    assert ranges.percentile(counted(values, 0, 8), 0, 8)[0] == 0


def test_mse_keeps_all_of_a_uniform_tensor_and_clips_a_far_outlier():
    uniform = np.linspace(-1, 1, 100_000)
    assert ranges.mse(counted(uniform, -1, 1), -1, 1) == pytest.approx((-1, 1), abs=0.02)
    bell = np.append(np.random.default_rng(0).standard_normal(1_000_000), 12.0)
    least, most = ranges.mse(counted(bell, -12, 12), -12, 12)
    assert most == pytest.approx(-least)
    assert 3.6 <= most < 6


def test_observing_gives_ends_and_means_of_channels_over_all_samples(tmp_path):
    path = file(tmp_path / "m.onnx", [node("Mul", "x two", "y")], {"two": np.float32(2)}, shape=(1, 2, 1, 2))
    samples = [
        {"x": np.array([[[[1, 3]], [[-4, 0]]]], np.float32)},
        {"x": np.array([[[[5, 7]], [[0, 0]]]], np.float32)},
    ]
    seen = ranges.observed(onnx.load(path), ["x", "y"], samples)
    assert (seen["x"].least, seen["x"].most) == (-4, 7)
    assert (seen["y"].least, seen["y"].most) == (-8, 14)
    np.testing.assert_array_equal(seen["y"].mean, [8, -2])
    assert ranges.of("minmax", onnx.load(path), seen, samples) == {"x": (-4, 7), "y": (-8, 14)}
    assert set(ranges.of("mse", onnx.load(path), seen, samples)) == {"x", "y"}
