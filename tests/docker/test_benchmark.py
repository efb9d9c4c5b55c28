"""The benchmark of the images, without an image: a network of 32x32 pixels stands for the zoo's."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kerf.deploy.frontend import clean
from kerf.deploy.frontend.zero_blocks import prunable, without_least, zero_blocks
from kerf.deploy.report.inspect import densities
from kerf.errors import Mismatch
from tests.helpers.onnx_networks import Builder, mobile

SCRIPT = Path(__file__).parents[2] / "docker" / "benchmark.py"
spec = spec_from_file_location("benchmark", SCRIPT)  # another distribution has the name docker
benchmark = module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "networks").mkdir()
    mobile(tmp_path / "networks" / "tiny.onnx", zero_blocks=0)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    fast = ["--seconds=0.1", "--against=onnxruntime", f"--out={folder / 'out'}", f"--networks={folder / 'networks'}"]
    return [*fast, *more]


def test_a_network_of_the_image_becomes_sparse_is_raced_and_reported(folder, capsys):
    assert benchmark.main(words(folder, "--arch=tiny", "--N=4", "--sparsity=0.5")) == 0
    out = folder / "out"
    assert "ONNX Runtime" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["verified"]
    assert {"kerf", "onnxruntime"} == set(report["latency_ms"])
    sparse = {row["name"] for row in report["layers"] if row["block"] == "4x1"}
    assert sparse == {"expand", "se.reduce", "se.expand", "project", "spatial"}
    assert (out / "report.html").read_bytes() == (out / "tiny-1x4-0.5.kerf" / "report.html").read_bytes()
    assert {p.name for p in out.iterdir()} == {"report.html", "report.json", "tiny-1x4-0.5.onnx", "tiny-1x4-0.5.kerf"}


def test_a_network_of_the_image_on_integers(folder, capsys):
    assert benchmark.main(words(folder, "--arch=tiny", "--int8")) == 0
    assert "ONNX Runtime int8" in capsys.readouterr().out
    report = json.loads((folder / "out" / "report.json").read_text())
    assert "int8" in {row["numbers"] for row in report["layers"]}
    assert (folder / "out" / "tiny-1x4-0.5.int8.kerf").is_dir()
    assert benchmark.main(words(folder, f"--onnx_path={folder / 'networks' / 'tiny.onnx'}", "--int8")) == 2
    assert "give --calibration DIR" in capsys.readouterr().err


def test_your_own_network_can_be_raced_as_it_is(folder):
    own = mobile(folder / "own.onnx", zero_blocks=0.5)
    before = own.read_bytes()
    assert benchmark.main(words(folder, f"--onnx_path={own}", "--as_is")) == 0
    assert own.read_bytes() == before
    assert {p.name for p in (folder / "out").iterdir()} == {"report.html", "report.json", "own.kerf"}


def test_every_layer_but_stem_grouped_and_dense_loses_that_share_of_its_blocks(folder):
    model = onnx.load(folder / "networks" / "tiny.onnx")
    zero_blocks(model, 4, 0.75, "tiny")
    onnx.save(model, folder / "sparse.onnx")
    found = {d.name: d.zero_blocks for d in densities(folder / "sparse.onnx", 4)}
    assert found["stem"] == found["depthwise"] == found["classifier"] == 0
    blocks = {d.name: d.blocks for d in densities(folder / "sparse.onnx", 4)}
    for name in ("expand", "project", "spatial", "se.reduce", "se.expand"):
        assert found[name] == int(0.75 * blocks[name])


@pytest.mark.parametrize(("o", "n", "share"), [(10, 4, 0.5), (8, 4, 0.75), (3, 16, 0.3), (6, 1, 0.29)])
def test_the_blocks_are_those_that_training_would_prune(o, n, share):
    torch = pytest.importorskip("torch")
    from kerf.compress.pruning import criteria, scopes
    from kerf.compress.units import weights

    weight = torch.randn(o, 6, 3, 3)
    model, example = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1), torch.nn.Conv2d(6, o, 3)), torch.zeros(1, 3, 8, 8)
    model[1].weight.data.copy_(weight)
    split = weights.OneByN(n).split(model, weights.DependencyGraph.trace(model, example), example)
    (unit,) = split
    (kept,) = scopes.local([criteria.l1(unit)], split, share)
    expected = (weight * unit.mask(kept)).numpy()
    np.testing.assert_array_equal(without_least(weight.numpy(), n, share), expected)


def test_layers_that_read_the_scaled_input_are_stems_and_weights_may_be_constant_nodes(tmp_path):
    b = Builder()
    x = b.node("Mul", ["input", b.constant("scale", 2)], "scaled")
    x = b.conv(x, "stem", 8, 3)
    b.conv(x, "layer", 8, 8)
    model = onnx.load(b.save(tmp_path / "m.onnx", "layer", out_shape=(1, 8, 32, 32)))
    assert [t.name for t, _ in prunable(model.graph, 4)] == ["layer.weight"]
    weight = next(t for t in model.graph.initializer if t.name == "layer.weight")
    node = onnx.helper.make_node("Constant", [], ["layer.weight"], value=weight)
    model.graph.node.insert(0, node)
    model.graph.initializer.remove(weight)
    onnx.save(model, tmp_path / "constant.onnx")
    cleaned = clean.read(tmp_path / "constant.onnx")
    zero_blocks(cleaned, 4, 0.5, "m")
    (pruned,) = (numpy_helper.to_array(t) for t in cleaned.graph.initializer if t.name == "layer.weight")
    assert (pruned == 0).mean() == 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--arch=other"], "expected tiny"),
        (["--arch=tiny", "--onnx_path=x.onnx"], "not allowed with"),
        (["--networks=none"], "no networks in none"),
        (["--onnx_path=none.onnx"], "no such file"),
        (["--onnx_path=broken.onnx"], "not a readable ONNX model"),
        (["--onnx_path=stem.onnx"], "no convolution to prune"),
        (["--arch=tiny", "--as_is"], "--as_is"),
        (["--arch=tiny", "--N=0"], "--N 0"),
        (["--arch=tiny", "--sparsity=1"], "--sparsity 1"),
        (["--arch=tiny", "--sparsity=nan"], "--sparsity nan"),
        (["--arch=tiny", "--threads=0"], "--threads 0"),
        (["--arch=tiny", "--trials=few"], "--trials"),
        (["--arch=tiny", "--against=tflite"], "tflite"),
        (["--arch=tiny", "--out=broken.onnx"], "broken.onnx"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2_and_nothing_is_written(folder, monkeypatch, capsys, more, said):
    monkeypatch.chdir(folder)
    Path("broken.onnx").write_text("no model")
    b = Builder()
    b.conv("input", "stem", 8, 3)
    b.save(Path("stem.onnx"), "stem", out_shape=(1, 8, 32, 32))
    before = sorted(folder.rglob("*"))
    assert benchmark.main(words(folder, *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert sorted(folder.rglob("*")) == before


def test_a_benchmark_that_fails_leaves_the_last_one_as_it_was(folder, monkeypatch):
    asked = words(folder, "--arch=tiny")
    assert benchmark.main(asked) == 0
    out = folder / "out"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    mobile(folder / "networks" / "tiny.onnx", zero_blocks=0.9)

    def differs(*_):
        raise Mismatch("other outputs")

    monkeypatch.setattr(benchmark, "carry_out", differs)
    assert benchmark.main(asked) == 2
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
