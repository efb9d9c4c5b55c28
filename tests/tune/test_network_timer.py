"""Times of a network and of its layers, as a target in milliseconds needs them."""

import numpy as np
import pytest

from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.record import RecordBook
from kerf.tune import network_timer
from kerf.tune.network_timer import Clock
from tests.helpers.onnx_networks import mobile


def test_a_network_is_timed_against_the_dense_engines(tmp_path):
    kerf, dense, engine = Clock((4,), records=tmp_path / "r").network_ms(mobile(tmp_path / "m.onnx"), seconds=0.2)
    assert kerf > 0
    assert dense > 0
    assert engine in ("onnxruntime", "openvino")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_what_cannot_be_timed_is_refused_and_an_interrupt_is_one(tmp_path, monkeypatch):
    path = mobile(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="no such CPU"):
        Clock((4,), "z80").network_ms(path)
    monkeypatch.setattr("kerf.deploy.compiler.targets.foreign", lambda target: "needs another CPU")
    with pytest.raises(ValueError, match="cannot run it"):
        Clock((4,)).network_ms(path)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(network_timer, "compile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Clock((4,)).network_ms(path)


def test_every_share_of_a_layer_has_a_time_and_none_is_measured_twice(tmp_path):
    path, records = mobile(tmp_path / "m.onnx", zero_blocks=0), tmp_path / "r.jsonl"
    times = Clock((4, 8), records=records).layers_us(path, ["expand", "project", "absent"], 4)
    assert list(times) == ["expand", "project"]
    assert all(len(row) == 1 + len(network_timer.SHARES) and min(row) > 0 for row in times.values())
    count = len(RecordBook(records).records)
    assert Clock((4,), records=records).layers_us(path, ["expand", "project"], 4) == times
    assert len(RecordBook(records).records) == count


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_layer_without_a_share_of_its_blocks(tmp_path, share):
    layer = convert(mobile(tmp_path / "m.onnx", zero_blocks=0), 4, 1.0).layers[
        "spatial"
    ]  # 22 outputs: a short block row
    without = network_timer.without(layer, 4, share)
    blocks = 6 * 16
    assert without.problem.nnzb == blocks - round(share * blocks)
    kept = without.weight != 0
    assert np.array_equal(without.weight[kept], layer.weight[kept])
