"""The record file: what it survives, which of its records decides, and its way to other machines."""

import json
import multiprocessing
import resource
from dataclasses import replace

import numpy as np
import pytest

from kerf.deploy.compiler import pretuned, targets
from kerf.deploy.compiler.choice import Choice
from kerf.deploy.frontend.convert import convert
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import Record, RecordBook, interval
from kerf.kernels.backends import BY_NAME, CPU
from kerf.kernels.kernel import pick
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F32, TensorType
from kerf.tune.cli import main
from tests.helpers.onnx_networks import mobile

TARGET = targets.parse("native", 1)
P = Problem(1, 16, 8, 8, 16, n=4, nnzb=32)
KERNEL = pick(CPU.kernels, P, TARGET)
BYTES = TensorType("u8", 1.0, 0)


def record(config=None, samples=(3.0,) * 9, **more) -> Record:
    config = config or KERNEL.configs(P, TARGET)[0]
    fields = dict(target=targets.describe(TARGET), versions=provenance(), latency_us=tuple(samples))
    return Record(problem=P.to_json(), kernel=KERNEL.name, config=config, **{**fields, **more})


def test_a_torn_last_line_is_dropped_with_a_warning_and_nothing_else(tmp_path):
    path = tmp_path / "records.jsonl"
    book = RecordBook(path)
    book.add(record({"a": 1}), record({"a": 2}))
    path.write_text(path.read_text()[:-20])
    with pytest.warns(UserWarning, match=r"records\.jsonl: 1 lines are no records"):
        book = RecordBook(path)
    assert [r.config for r in book.records] == [{"a": 1}]
    book.add(record({"a": 3}))
    with pytest.warns(UserWarning, match="1 lines"):
        assert [r.config for r in RecordBook(path).records] == [{"a": 1}, {"a": 3}]


def test_a_changed_line_is_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    RecordBook(path).add(record({"a": 1}), record({"a": 2}))
    path.write_text(path.read_text().replace('"a": 1', '"a": 9'))
    with pytest.warns(UserWarning, match="1 lines"):
        assert [r.config for r in RecordBook(path).records] == [{"a": 2}]


def test_a_disk_that_becomes_full_takes_all_records_or_none(tmp_path):
    """A limit on the size of files stands for it: there, too, the system writes a part, and says so by a number."""
    path = tmp_path / "records.jsonl"
    RecordBook(path).add(record({"a": 1}))
    before, most = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, most[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            RecordBook(path).add(record({"a": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert path.read_bytes() == before
    RecordBook(path).add(record({"a": 2}))
    assert [r.config for r in RecordBook(path).records] == [{"a": 1}, {"a": 2}]


def write_many(path, name, count):
    book = RecordBook(path)
    for i in range(count):
        book.add(record({name: i}))


def test_two_tuners_write_at_once_and_see_each_other(tmp_path):
    path, count = tmp_path / "records.jsonl", 200
    mine = RecordBook(path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, name, count)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    mine.refresh()
    assert len(mine.records) == 2 * count
    for name in "ab":
        assert [r.config[name] for r in mine.records if name in r.config] == list(range(count))


def test_interval_is_exact_for_small_samples():
    assert interval(np.arange(5.0)) == (-np.inf, np.inf)
    assert interval(np.arange(6.0)) == (0, 5)  # 97 %
    assert interval(np.arange(9.0)) == (1, 7)  # 96 %
    draws = np.random.default_rng(0).standard_normal((4000, 25))
    inside = [low <= 0 <= high for low, high in map(interval, draws)]
    assert 0.94 < np.mean(inside) < 0.975


def test_a_challenger_wins_only_beyond_noise():
    rng = np.random.default_rng(0)
    drift = rng.uniform(1, 2, 9)  # of the machine: both suffer it alike in one race
    book = RecordBook()
    book.add(record({"a": 1}, 10 * drift, race="x"), record({"a": 2}, 9.5 * drift, race="x"))
    assert book.best(P.to_json(), targets.describe(TARGET), provenance()).config == {"a": 2}
    book.add(record({"a": 3}, 9.4 * rng.uniform(1, 2, 9), race="y"))  # alone: cannot be told from noise
    assert book.best(P.to_json(), targets.describe(TARGET), provenance()).config == {"a": 2}
    book.add(record({"a": 2}, 9.5 * drift, race="z"), record({"a": 4}, 9.4 * drift[::-1], race="z"))
    assert book.best(P.to_json(), targets.describe(TARGET), provenance()).config == {"a": 2}
    book.add(record({"a": 2}, 9.5 * drift, race="w"), record({"a": 4}, 9.4 * drift, race="w"))
    assert book.best(P.to_json(), targets.describe(TARGET), provenance()).config == {"a": 4}


def test_records_travel_and_only_the_best_if_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    first, second = KERNEL.configs(P, TARGET)[:2]
    RecordBook(tmp_path / "a.jsonl").add(record(first), record(second, (2.0,) * 9))
    b, file = tmp_path / "b.jsonl", tmp_path / "best.jsonl"
    assert main(["export-records", str(file), "--best", f"--records={tmp_path / 'a.jsonl'}"]) == 0
    assert main(["import-records", str(file), f"--records={b}"]) == 0
    assert [r.config for r in RecordBook(b).records] == [second]
    assert main(["import-records", str(file), f"--records={b}"]) == 0
    assert "known already" in capsys.readouterr().out
    assert main(["show", f"--records={b}"]) == 0
    assert "16x8x8->16 1x1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(versions={**provenance(), "cpu": "Another"}), ["cpu Another"]),
        (dict(versions={**provenance(), "kernels": "old"}), ["kernels old"]),
        (dict(versions={**provenance(), "tvm": "0.1"}), ["tvm 0.1"]),
        (dict(target="cuda"), ["cuda"]),
        (dict(target="llvm -mcpu=nonsense -num-cores=1"), ["no such CPU"]),
        (dict(kernel="conv2d_unheard_of"), ["no kernel"]),
        (dict(kernel="conv2d_nchw_depthwise"), ["does not compute", "block-sparse"]),
        (dict(config={"lanes": 3}), ["no such configuration"]),
        (dict(problem="{}"), ["cannot be read"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(tmp_path, capsys, changes, words):
    file, records = tmp_path / "in.jsonl", tmp_path / "records.jsonl"
    file.write_text(replace(record(), **changes).to_line() + "\n")
    assert main(["import-records", str(file), f"--records={records}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not records.exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["show", "--records=none.jsonl"], "none.jsonl"),
        (["export-records", "out.jsonl", "--records=none.jsonl"], "none.jsonl"),
        (["import-records", "none.jsonl"], "none.jsonl"),
        (["import-records"], "file"),
        (["show", "--colour"], "--help"),
    ],
)
def test_wrong_use_of_the_record_commands(tmp_path, monkeypatch, capsys, flags, word):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_record_file_is_refused_whole(tmp_path, capsys):
    file = tmp_path / "in.jsonl"
    file.write_text(record().to_line() + "\nnonsense\n")
    assert main(["import-records", str(file), f"--records={tmp_path / 'r.jsonl'}"]) == 2
    assert "in.jsonl:2" in capsys.readouterr().err
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(("cpu", "name"), [("x86-64-v4", "avx512.jsonl"), ("x86-64-v3", "avx2.jsonl")])
def test_every_shipped_line_is_a_configuration_that_is_taken(cpu, name):
    lines = (pretuned.FOLDER / name).read_text().splitlines()
    assert lines
    for text in lines:
        row = json.loads(text)
        p = Problem.from_json(json.dumps(row["problem"]))
        choice = pretuned.known(p, targets.parse(cpu, row["threads"]))
        assert (choice.kernel, choice.config, choice.problem == p) == (row["kernel"], row["config"], not row["dense"])
        assert choice.kernel in BY_NAME


def test_what_is_shipped_helps_layers_of_other_densities(tmp_path, monkeypatch):
    network = convert(mobile(tmp_path / "m.onnx"))
    p = network.layers["spatial"].problem
    kernel = pick(CPU.kernels, p, TARGET)
    config = kernel.configs(p, TARGET)[3]
    file = tmp_path / "known.jsonl"
    sparser = replace(p, nnzb=p.nnzb // 2)
    file.write_text(pretuned.line(sparser, Choice(sparser, kernel.name, config), TARGET) + "\n")
    monkeypatch.setattr(pretuned, "file_of", lambda _: file)
    assert pretuned.known(p, TARGET) == Choice(p, kernel.name, config)
    assert pretuned.known(replace(p, activation="sigmoid"), TARGET) is None


@pytest.mark.parametrize("more", [{"residual_type": F32}, {"middle": BYTES}], ids=str)
def test_integer_layers_are_looked_up_whatever_they_add(more, tmp_path, monkeypatch):
    """As is their residual, its type and what is rounded before it do not count."""
    weights = TensorType("i8", axis=0)
    p = Problem(1, 16, 8, 8, 16, n=4, nnzb=32, x=BYTES, w=weights, y=BYTES, residual=True, **more)
    kernel = pick(CPU.kernels, p, TARGET)
    config, file = kernel.configs(p, TARGET)[1], tmp_path / "integers.jsonl"
    file.write_text(pretuned.line(p, Choice(p, kernel.name, config), TARGET) + "\n")
    monkeypatch.setattr(pretuned, "file_of", lambda _: file)
    assert pretuned.known(p, TARGET) == Choice(p, kernel.name, config)
    alone = replace(p, residual=False, residual_type=None, middle=None)
    assert pretuned.known(alone, TARGET) == Choice(alone, kernel.name, config)
