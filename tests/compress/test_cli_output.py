"""--quiet and --json of kerf-prune."""

import io
import json

import pytest
from rich.console import Console

from kerf.compress import cli
from kerf.compress.command.parsing import parse
from kerf.compress.training import progress
from tests.helpers import run_files
from tests.helpers.run_files import read

SMALL = [*run_files.SMALL, "--N=4"]


def test_a_run_in_json_is_its_summary_and_files(tmp_path, capfd):
    flags = [*SMALL, "--num_epochs=1", f"--job_dir={tmp_path / 'a'}", "--json"]
    assert cli.main(flags) == 0
    out, words = capfd.readouterr()
    found = json.loads(out)
    files = found.pop("files")
    assert found == read(tmp_path / "a" / "summary.json")
    assert set(files) >= {str(tmp_path / "a" / name) for name in ("summary.json", "metrics.jsonl", "checkpoint")}
    assert "test top-1" in words
    assert not {"json", "quiet"} & read(tmp_path / "a" / "config.json").keys()


def test_the_command_of_a_summary_is_the_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL, "--num_epochs=1", "--rearrange", "--pr_target=0.25", "--job_dir=with space", "--quiet"]
    assert cli.main(flags) == 0
    assert tuple(capfd.readouterr()) == ("", "")
    summary = read(tmp_path / "with space" / "summary.json")
    assert summary["command"].startswith("python imagenet.py ")
    assert "'--job_dir=with space'" in summary["command"]
    import shlex

    again = parse(shlex.split(summary["command"])[2:])[0]
    assert again.as_json() == read(tmp_path / "with space" / "config.json")
    assert summary["trained_with"]["device"] == "cpu"


@pytest.mark.slow  # half a minute: sensitivities twice
def test_what_was_asked_for_is_printed_quietly_too(tmp_path, capfd):
    flags = [*SMALL, "--num_epochs=0", "--calibration=16", f"--job_dir={tmp_path}"]
    assert cli.main(["sensitivity", *flags, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found.pop("files") == [
        str(tmp_path / name) for name in ("config.json", "sensitivity.json", "sensitivity.svg")
    ]
    assert found == read(tmp_path / "sensitivity.json")
    assert cli.main(["sensitivity", *flags, "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("top-1 with one layer pruned")
    assert err == ""


@pytest.mark.parametrize("quiet", [["--quiet"], ["--json"], ["--quiet", "--json"]])
def test_errors_still_come(quiet, tmp_path, capfd):
    assert cli.main([*SMALL, "--pr_target=2", f"--job_dir={tmp_path / 'no'}", *quiet]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_show_and_methods_in_json(tmp_path, capfd):
    assert cli.main([*SMALL, "--num_epochs=0", f"--job_dir={tmp_path}", "--quiet"]) == 0
    checkpoint = tmp_path / "checkpoint" / "best.safetensors"
    assert cli.main(["show", str(checkpoint), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["arch"], found["macs"][0]) == ("resnet20", found["macs"][0])
    assert found["macs"][1] < found["macs"][0]
    zeros = {layer["name"]: layer["zeros"] for layer in found["layers"]}
    assert zeros["layer1.0.conv1.weight"] == pytest.approx(0.5, abs=0.02)
    assert cli.main(["methods", "--json"]) == 0
    names = {method["name"] for method in json.loads(capfd.readouterr().out)["methods"]}
    assert {"one_by_n", "resrep"} <= names
    assert cli.main(["methods", "resrep", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["numbers"]["granularity"] == 4


def test_counting_shows_what_is_left(monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    text = io.StringIO()
    reporter = progress.Reporter(Console(file=text, soft_wrap=True))
    for done in range(5):
        reporter.count("layers", done, 4)
    assert text.getvalue().splitlines() == ["layers  2/4  40 s left", "layers  4/4"]
