import json
from dataclasses import replace

import numpy as np
import pytest

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import choose
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure import verify
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import Record, RecordBook
from kerf.errors import BadInput
from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR
from kerf.kernels.kernel import dense_twin, pick
from kerf.tune import proof
from kerf.tune.cli import main
from kerf.tune.places import Here
from kerf.tune.runners import Entrant, Measurer
from kerf.tune.search import example, search
from tests.helpers.onnx_networks import mobile

TARGET = targets.parse("native", 1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return convert(mobile(tmp_path_factory.mktemp("search") / "m.onnx"))


def written(problem, kernel, config, us, error=""):
    latency = (us,) * 9 if us else ()
    return Record(problem.to_json(), kernel, config, targets.describe(TARGET), latency, provenance(), error)


def test_the_faster_of_sparse_and_dense_is_chosen(network):
    p = network.layers["spatial"].problem
    sparse, dense = pick(CPU.kernels, p, TARGET), pick(CPU.kernels, dense_twin(p), TARGET)
    sparse_config, dense_config = sparse.configs(p, TARGET)[1], dense.configs(dense_twin(p), TARGET)[1]
    book = RecordBook()
    assert choose(p, TARGET, book).config == sparse.configs(p, TARGET)[0]  # nothing measured: the default
    book.add(written(p, sparse.name, sparse_config, 10.0))
    book.add(written(p, sparse.name, sparse.configs(p, TARGET)[0], None, "crashed"))
    book.add(written(dense_twin(p), dense.name, dense_config, 20.0))
    assert choose(p, TARGET, book).kernel == sparse.name
    assert choose(p, TARGET, book).config == sparse_config
    book.add(written(dense_twin(p), dense.name, dense_config, 5.0))
    assert choose(p, TARGET, book).problem == dense_twin(p)


def test_a_default_that_failed_is_not_chosen_though_the_file_orders_its_keys(network, tmp_path):
    p = network.layers["spatial"].problem
    kernel = pick(CPU.kernels, p, TARGET)
    first, second = kernel.configs(p, TARGET)[:2]
    RecordBook(tmp_path / "r.jsonl").add(written(p, kernel.name, first, None, "crashed"))
    assert list(first) != sorted(first)  # else the file would change nothing
    assert choose(p, TARGET, RecordBook(tmp_path / "r.jsonl")).config == second


def test_search_measures_each_configuration_once_and_continues(network, tmp_path):
    path = tmp_path / "records.jsonl"
    first = search(network, TARGET, 1, RecordBook(path), trials=3)
    assert (first.measured, first.failed, first.problems) == (3, 0, len(network.layers))
    assert first.stopped == "3 trials"
    second = search(network, TARGET, 1, RecordBook(path), trials=2)
    assert (second.measured, second.failed) == (2, 0)
    assert second.reused == 3
    assert len({(r.problem, r.what) for r in RecordBook(path).records}) == 5


@pytest.mark.slow  # half a minute: all that may win is built
def test_a_search_that_may_finish_tries_what_can_win_and_repeats_nothing(network):
    book = RecordBook()
    part = replace(network, layers={"expand": network.layers["expand"]})
    first = search(part, TARGET, 1, book, trials=1000)
    assert first.stopped == "nothing is left to try"
    assert first.failed == 0
    assert search(part, TARGET, 1, book, trials=1000).measured == 0


@pytest.mark.slow  # half a minute: a search of its own
def test_a_search_ends_when_little_is_to_be_gained(network):
    part = replace(network, layers={"expand": network.layers["expand"]})
    summary = search(part, TARGET, 1, RecordBook(), trials=1000, tolerance=0.9)
    assert "less than 90.0%" in summary.stopped
    ways = [k for k in CPU.kernels for p in (part.layers["expand"].problem,) if k.refuses(p, TARGET) is None]
    assert summary.measured <= len(ways) + 2  # the defaults alone


@pytest.fixture(scope="module")  # its processes take seconds to start
def measurer():
    measurer = Measurer(TARGET, 1)
    yield measurer
    measurer.close()


def entrants_of(layer, configs, measurer, spoil=lambda arrays: arrays):
    kernel = pick(CPU.kernels, layer.problem, TARGET)
    built = measurer.build([kernel.prim_func(layer.problem, c, TARGET) for c in configs])
    assert all(library for library, _ in built), built
    found = []
    for config, (library, _) in zip(configs, built):
        packed = kernel.pack(layer.problem, BSR.from_conv(layer.weight, 4), config)
        found.append((library, spoil([*packed.values(), layer.bias])))
    return found


def test_a_wrong_kernel_is_wrong_not_fast_and_does_not_disturb_the_others(network, measurer):
    layer = network.layers["expand"]
    configs = pick(CPU.kernels, layer.problem, TARGET).configs(layer.problem, TARGET)[:2]
    (good, arrays), (other, others) = entrants_of(layer, configs, measurer)
    x, residual, truth = example(layer)
    wrong = Entrant(other, (others[0] * 1.01, *others[1:], *residual))
    right, bad = measurer.race(x, [Entrant(good, (*arrays, *residual)), wrong], truth).result()
    assert len(right.latency_us) == len(right.cold_us) == 9
    assert bad.latency_us == ()
    assert "wrong result" in bad.error


def test_a_kernel_that_crashes_is_found_and_the_others_are_timed(network, measurer, tmp_path):
    layer = network.layers["expand"]
    configs = pick(CPU.kernels, layer.problem, TARGET).configs(layer.problem, TARGET)[:2]
    (good, arrays), (other, others) = entrants_of(layer, configs, measurer)
    x, residual, truth = example(layer)
    garbage = tmp_path / "kernel.so"
    garbage.write_bytes(b"no library")
    broken = Entrant(str(garbage), (*others, *residual))
    entrants = [Entrant(good, (*arrays, *residual)), broken, Entrant(other, (*others, *residual))]
    first, crashed, last = measurer.race(x, entrants, truth).result()
    assert len(first.latency_us) == len(last.latency_us) == 9
    assert crashed.latency_us == ()
    assert crashed.error


def test_records_of_another_cpu_are_not_used(network):
    p = network.layers["expand"].problem
    kernel = pick(CPU.kernels, p, TARGET)
    record = written(p, kernel.name, kernel.configs(p, TARGET)[3], 1.0)
    book = RecordBook()
    book.add(Record(**{**record.__dict__, "versions": {**record.versions, "cpu": "another"}}))
    assert choose(p, TARGET, book).config == kernel.configs(p, TARGET)[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--onnx_path", "none.onnx"], ["none.onnx", "no such file"]),
        (["--bsr", "0"], ["--bsr 0"]),
        (["--bsr", "-4"], ["--bsr -4"]),
        (["--bsc", "2"], ["--bsc 2", "use --bsc 1"]),
        (["--sparsity", "1.5"], ["--sparsity 1.5", "between 0 and 1"]),
        (["--target", "z80"], ["z80", "native"]),
        (["--threads", "0"], ["--threads 0"]),
        (["--trials", "-1"], ["--trials -1"]),
        (["--batch", "0"], ["--batch 0"]),
        (["--tune_minutes", "0"], ["--tune_minutes 0"]),
        (["--tolerance", "1"], ["--tolerance 1", "below 1"]),
        (["--target", "llvm -mattr=+avx2"], ["says no CPU"]),
        (["--against", "tensorrt"], ["tensorrt", "openvino"]),
        (["--sparsity", "half"], ["--sparsity", "half"]),
        (["--bsize", "4"], ["--bsize", "--help"]),
    ],
)
def test_wrong_use_is_one_line_exit_2_and_nothing_written(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    path = mobile(tmp_path / "in" / "m.onnx")
    flags = flags if "--onnx_path" in flags else ["--onnx_path", str(path), *flags]
    assert main([*flags, "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "m.onnx"]


def test_bare_command_takes_the_newest_onnx(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "no .onnx under runs/ or experiments/" in capsys.readouterr().err
    (tmp_path / "experiments" / "a").mkdir(parents=True)
    mobile(tmp_path / "experiments" / "a" / "model.onnx")
    assert main(["--trials=0", "--seconds=0.2", "--against=onnxruntime", "--threads=2"]) == 0
    assert (tmp_path / "experiments" / "a" / "model.kerf" / "report.html").is_file()
    report = json.loads((tmp_path / "experiments" / "a" / "model.kerf" / "report.json").read_text())
    assert report["threads"] == 2
    assert np.isfinite(report["max_abs_error"])


def test_a_target_that_cannot_run_here_is_built_without_running(tmp_path, monkeypatch, capsys):
    path = mobile(tmp_path / "m.onnx")
    monkeypatch.setattr(targets, "foreign", lambda target: "needs another CPU")
    assert main(["--onnx_path", str(path), "--target", "x86-64-v3", f"--records={tmp_path}/r"]) == 0
    assert "not verified" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "m.kerf" / "manifest.json").read_text())
    assert "avx512f" not in manifest["needs"]["features"]
    assert "avx2" in manifest["needs"]["features"]
    assert not (tmp_path / "m.kerf" / "report.json").exists()


def test_what_failed_is_not_built(network):
    p = network.layers["spatial"].problem
    sparse, dense = pick(CPU.kernels, p, TARGET), pick(CPU.kernels, dense_twin(p), TARGET)
    book = RecordBook()
    first, second = sparse.configs(p, TARGET)[:2]
    book.add(written(p, sparse.name, first, None, "wrong result: differs"))
    assert choose(p, TARGET, book).config == second
    for config in sparse.configs(p, TARGET):
        book.add(written(p, sparse.name, config, None, "crashed"))
    assert choose(p, TARGET, book).kernel == dense.name


def test_a_network_that_is_not_verified_leaves_no_bundle(tmp_path, monkeypatch, capsys):
    path = mobile(tmp_path / "m.onnx")

    def mismatch(*_, **__):
        raise verify.Mismatch("output 0 differs")

    monkeypatch.setattr(proof, "verify", mismatch)
    assert main(["--onnx_path", str(path), "--trials=0"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "output 0 differs; wrong layers: none on its own" in line
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_an_engine_that_fails_is_left_out_of_the_race(tmp_path, monkeypatch, capsys):
    path = mobile(tmp_path / "m.onnx")

    def broken(*_):
        raise RuntimeError("engine\nbroke")

    monkeypatch.setitem(Here.dense_engines, "openvino", broken)
    assert main(["--onnx_path", str(path), "--trials=0", "--seconds=0.2"]) == 0
    assert "engine broke; raced without openvino" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "m.kerf" / "report.json").read_text())["latency_ms"]) == {"kerf", "onnxruntime"}


def test_a_search_in_which_nothing_runs_says_why(network, monkeypatch):
    monkeypatch.setattr(Measurer, "build", lambda self, funcs: [(None, "ld: cannot find crti.o") for _ in funcs])
    with pytest.raises(BadInput, match=r"none of \d+ candidates ran.*failed with: ld: cannot find crti.o; --trials 0"):
        search(network, TARGET, 1, RecordBook(), trials=1000)
