"""The race on a clock of its own: what is timed, in which order, and what the ratio claims. No wall clock asserted."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.measure.bench import (
    Engine,
    Measurement,
    onnxruntime_engine,
    openvino_engine,
    race,
    refuse_different_outputs,
    speedup,
)  # fmt: skip
from kerf.deploy.measure.environment import environment
from kerf.errors import BadInput

X = np.ones((1, 4), np.float32)


class Clock:
    """Seconds that pass only when an engine runs."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def engine(self, name: str, seconds: float, output: np.ndarray = X) -> Engine:
        def run(x):
            self.now += seconds
            self.log.append(name)
            return output

        return Engine(name, run)


def raced(clock: Clock, *engines: Engine, **settings) -> list[Measurement]:
    return race(engines, X, clock=clock, settle=lambda: None, **settings)


def test_samples_are_the_engines_latency_in_milliseconds():
    clock = Clock()
    engines = clock.engine("kerf", 0.0005), clock.engine("onnxruntime", 0.005)
    fast, slow = raced(clock, *engines, rounds=30)
    assert (fast.engine, slow.engine) == ("kerf", "onnxruntime")
    assert fast.samples == pytest.approx([0.5] * 30)
    assert slow.samples == pytest.approx([5.0] * 30)
    assert fast.calls * 0.0005 >= 0.002 - 1e-9
    assert slow.calls == 1
    assert set(slow.to_json()) == {"median", "p10", "p90", "samples"}


def test_rounds_are_interleaved_in_seeded_random_order():
    def order(seed: int) -> list[str]:
        clock = Clock()
        raced(clock, *(clock.engine(name, 0.004) for name in "abc"), rounds=40, seed=seed)
        return clock.log[-40 * 3 * 2 :: 2]  # the untimed call and the timed one of each sample

    log = order(0)
    rounds = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert all(sorted(r) == list("abc") for r in rounds)
    assert len(set(rounds)) == 6
    assert order(0) == log != order(1)


def test_time_budget_is_kept_but_for_twenty_rounds_or_five_of_a_slow_network():
    clock = Clock()
    (measurement,) = raced(clock, clock.engine("onnxruntime", 0.01), seconds=1.0)
    assert len(measurement.samples) == 50
    (measurement,) = raced(clock, clock.engine("onnxruntime", 0.04), seconds=1.0)
    assert len(measurement.samples) == 20
    (measurement,) = raced(clock, clock.engine("onnxruntime", 1.0), seconds=1.0)
    assert len(measurement.samples) == 5


@pytest.mark.parametrize("wrong", [X * 1.01, X[:, :2], X * float("nan")])
def test_engines_that_compute_something_else_are_not_raced(wrong):
    clock = Clock()
    with pytest.raises(ValueError, match=r"^kerf .* onnxruntime"):
        raced(clock, clock.engine("kerf", 0.001, wrong), clock.engine("onnxruntime", 0.001), rounds=3)


def test_bad_settings_are_refused():
    clock = Clock()
    with pytest.raises(ValueError, match="different names"):
        raced(clock, clock.engine("a", 0.1), clock.engine("a", 0.1))
    with pytest.raises(ValueError, match="rounds is 0"):
        raced(clock, clock.engine("a", 0.1), rounds=0)


def measurement(name: str, samples: np.ndarray) -> Measurement:
    return Measurement(name, tuple(map(float, samples)), 1)


def test_percentiles():
    m = measurement("kerf", np.arange(101.0))
    assert (m.p10, m.median, m.p90) == (10, 50, 90)


def test_speedup_is_against_the_faster_dense_engine_and_survives_common_drift():
    drift = np.linspace(1, 3, 60)  # the machine slows down threefold: hits both engines alike
    kerf, ort, vino = (measurement(n, t * drift) for n, t in (("kerf", 2.0), ("onnxruntime", 4.0), ("openvino", 3.0)))
    result = speedup(kerf, [ort, vino])
    assert result["against"] == "openvino"
    assert result["median"] == pytest.approx(1.5)
    assert result["ci95"] == pytest.approx([1.5, 1.5])
    assert result["conclusive"] is True
    assert speedup(ort, [vino])["conclusive"] is True, "conclusively slower is a conclusion too"


def test_no_difference_is_not_conclusive_and_the_interval_is_reproducible():
    noise = np.random.default_rng(0)
    a, b = (measurement(name, noise.normal(5, 0.3, 100)) for name in ("kerf", "onnxruntime"))
    result = speedup(a, [b])
    low, high = result["ci95"]
    assert low < 1 < high
    assert low <= result["median"] <= high
    assert result["conclusive"] is False
    assert speedup(a, [b]) == result


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Slow phases of 5 rounds hit one engine: the interval must still hold the true ratio of medians mostly."""
    noise = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        phases = np.repeat(noise.normal(0, 0.05, 20), 5)
        kerf = measurement("kerf", np.exp(phases + noise.normal(0, 0.02, 100)))
        low, high = speedup(kerf, [measurement("onnxruntime", np.full(100, 1.2))], resamples=300)["ci95"]
        hits += low <= 1.2 <= high
    assert hits >= 85


def test_speedup_needs_a_paired_dense_engine():
    with pytest.raises(ValueError, match="no dense engine"):
        speedup(measurement("kerf", np.ones(20)), [])
    with pytest.raises(ValueError, match="rounds of one race"):
        speedup(measurement("kerf", np.ones(20)), [measurement("onnxruntime", np.ones(19))])


@pytest.fixture
def linear(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"])],
        "net",
        [tensor("input", TensorProto.FLOAT, [1, 4])],
        [tensor("output", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "linear.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path, X @ weight


def test_onnxruntime_runs(linear):
    path, expected = linear
    engine = onnxruntime_engine(path, threads=1)
    assert engine.name == "onnxruntime"
    np.testing.assert_allclose(engine.run(X), expected, rtol=1e-5)
    (m,) = race([engine], X, rounds=3)
    assert len(m.samples) == 3
    assert min(m.samples) > 0


def test_openvino_runs(linear):
    pytest.importorskip("openvino", reason="openvino is optional: pip install '.[peers]'")
    path, expected = linear
    engine = openvino_engine(path, threads=1)
    assert engine.name == "openvino"
    np.testing.assert_allclose(engine.run(X), expected, rtol=1e-5)


def test_environment_says_where_it_was_measured():
    found = environment()
    assert found["cpu"]
    assert found["machine"]["cores"] >= 1
    assert {"python", "numpy", "onnxruntime"} <= set(found["versions"])


@pytest.mark.parametrize(
    ("off", "dtype", "agree"), [(1, np.uint8, True), (9, np.uint8, False), (1, np.int8, True), (1, np.int64, False)]
)
def test_bytes_agree_like_numbers_and_other_integers_like_names(off, dtype, agree):
    truth = np.arange(100).astype(dtype)
    engines = [Engine("onnxruntime int8", lambda _: truth), Engine("kerf", lambda _: (truth + off).astype(dtype))]
    if agree:
        refuse_different_outputs(engines, X, 0.02)
    else:
        with pytest.raises(BadInput, match="differ by"):
            refuse_different_outputs(engines, X, 0.02)
