"""scripts/bench/zoo.py on a network of two layers, through the functions that it runs in processes of their own."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.helpers import onnx_networks

FOLDER = Path(__file__).parents[2] / "scripts" / "bench"
SHAPE = (1, 3, 16, 16)


def tiny(path: Path, shape: tuple[int, ...]) -> None:
    b = onnx_networks.Builder()
    x = b.node("Relu", [b.conv("input", "stem", 8, 3, 3)], "relu")
    b.save(path, b.conv(x, "mix", 8, 8), shape, (1, 8, 16, 16))


def missing(path: Path, shape: tuple[int, ...]) -> None:
    raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")


@pytest.fixture
def zoo(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = spec_from_file_location("bench_zoo", FOLDER / "zoo.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sources = module._zoo_networks.Source
    networks = {"tiny": sources(tiny, SHAPE), "missing": sources(missing, SHAPE)}
    monkeypatch.setattr(module._zoo_networks, "NETWORKS", networks)
    return module


def answer(zoo, capsys, *words) -> dict:
    """What a step prints for the process that asked for it."""
    assert zoo.main(list(words)) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_half_of_the_blocks_are_zeroed_and_the_network_is_built_and_raced(zoo, tmp_path, capsys):
    asked = ["--folder", str(tmp_path), "--networks", "tiny", "--seconds", "0.01"]
    assert answer(zoo, capsys, "--step", "make", "half", *asked) == {}
    stored = onnx.load(tmp_path / "tiny" / "half.onnx").graph.initializer
    weight = {t.name: numpy_helper.to_array(t) for t in stored}["mix.weight"]
    assert np.count_nonzero(np.abs(weight.reshape(2, 4, 8)).sum(axis=1)) == 8  # of 16 blocks of 4 kernels
    row = {"network": "tiny", "kind": "half", **answer(zoo, capsys, "--step", "build", "half", *asked)}
    assert row["build_s"] > 0
    assert row["gb"] > 0
    assert row["ms"].keys() >= {"kerf", "onnxruntime"}
    cells = zoo.line(row).split(" | ")
    assert len(cells) == zoo.HEAD.splitlines()[0].count("|") - 1
    assert cells[:4] == ["| tiny", "1×3×16×16", "half", "1 of 1"]


def test_a_package_that_is_missing_is_one_cell_of_the_table(zoo, tmp_path, capsys):
    found = answer(zoo, capsys, "--step", "make", "dense", "--folder", str(tmp_path), "--networks", "missing")
    assert found == {"failed": "package elsewhere is missing (pip install '.[zoo]')"}
    row = zoo.line({"network": "missing", "kind": "dense", **found})
    assert row.count("|") == zoo.HEAD.splitlines()[0].count("|")


def test_rows_are_kept_and_replaced(zoo, tmp_path):
    kept = zoo.Results(tmp_path / "results.json")
    for ms in (1, 2):
        kept.add({"network": "tiny", "kind": "half", "ms": ms})
    kept.add({"network": "tiny", "kind": "dense", "ms": 3})
    again = zoo.Results(tmp_path / "results.json")
    assert again.of("tiny", "half")["ms"] == 2
    assert again.of("tiny", "dense")["ms"] == 3
    assert again.of("other", "half") is None
