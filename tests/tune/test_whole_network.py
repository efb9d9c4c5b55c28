"""A tuned network is kept only if it is not slower as a whole, and that is found out once."""

import pytest

from kerf.deploy.compiler import targets
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.bench import Measurement
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import Record, RecordBook
from kerf.kernels.backends import CPU
from kerf.kernels.kernel import pick
from kerf.tune import whole_network
from tests.helpers.onnx_networks import mobile
from tests.helpers.sweeps import sweep

TARGET = targets.parse("native", 1)


@pytest.fixture
def tuned(tmp_path):
    """(network, book in which another configuration than the first was fastest)"""
    network, book = convert(mobile(tmp_path / "m.onnx")), RecordBook(tmp_path / "r.jsonl")
    p = network.layers["expand"].problem
    kernel = pick(CPU.kernels, p, TARGET)
    fields = dict(target=targets.describe(TARGET), latency_us=(1.0,) * 9, versions=provenance())
    book.add(Record(problem=p.to_json(), kernel=kernel.name, config=kernel.configs(p, TARGET)[2], **fields))
    return network, book


KEPT = {1.2: False, 0.8: True, 1.0: True}  # by milliseconds, of an untuned network's 1.0


@pytest.mark.parametrize("ms", sweep(KEPT, quick=(1.2, 0.8)))
def test_the_whole_network_decides_and_is_asked_once(tuned, monkeypatch, ms):
    network, book = tuned
    races = []

    def race(engines, x, seconds):
        races.append([e.run(x).shape for e in engines])  # they run
        times = {"tuned": ms, "untuned": 1.0}
        noise = (1.0, 1.01, 0.99) * 8
        return [Measurement(e.name, tuple(times[e.name] * n for n in noise), 1) for e in engines]

    monkeypatch.setattr(whole_network.bench, "race", race)
    built, said = whole_network.better(network, TARGET, 1, book)
    first = pick(CPU.kernels, network.layers["expand"].problem, TARGET).configs(
        network.layers["expand"].problem, TARGET
    )[0]
    assert (built.choices["expand"].config != first) == KEPT[ms]
    assert ("slower" in said) == (not KEPT[ms])
    again, _ = whole_network.better(network, TARGET, 1, RecordBook(book.path))
    assert again.choices == built.choices
    assert races == [[(1, 10), (1, 10)]]


@pytest.mark.quick
def test_nothing_measured_needs_no_race(tuned, monkeypatch):
    monkeypatch.setattr(whole_network.bench, "race", None)
    built, said = whole_network.better(tuned[0], TARGET, 1, RecordBook())
    assert "nothing that was measured" in said
    assert built.choices
