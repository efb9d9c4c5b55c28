"""--quiet and --json of the three commands: what reaches stdout, and that a program can read it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kerf.deploy.cli
import kerf.tune.cli
from kerf import console
from tests.helpers.onnx_networks import mobile
from tests.helpers.reports import job

ROOT = Path(__file__).parents[2]
FAST = ["--trials=0", "--seconds=0.2", "--against=onnxruntime"]
TUNED = ["--trials=2", *FAST[1:]]


def said(capsys) -> tuple[dict, str]:
    """(the one object on stdout, what is on stderr)"""
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return mobile(tmp_path_factory.mktemp("output") / "m.onnx")


@pytest.fixture(scope="module")
def built(network):
    out = network.with_suffix(".kerf")
    assert kerf.tune.cli.main([f"--onnx_path={network}", *FAST, f"--out={out}", "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def tuned(network):
    """(folder with records `r` and bundle `b`, what the command wrote): tuned with --json, in a process of its own."""
    folder = network.parent
    flags = [f"--onnx_path={network}", *TUNED, f"--records={folder}/r", f"--out={folder}/b", "--json"]
    done = subprocess.run([sys.executable, "-m", "kerf", "tune", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_words_go_where_they_are_asked_to(capsys):
    for quiet, as_json, out, err in (
        (False, False, "a\nb\n", ""),
        (True, False, "b\n", ""),
        (False, True, "b\n", "a\n"),
        (True, True, "b\n", ""),
    ):
        with console.speaking(quiet, as_json):
            print("a")
        print("b")
        assert tuple(capsys.readouterr()) == (out, err)
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.answer({"ms": float("inf")})


@pytest.mark.slow  # the same search again
def test_tuning_quietly_says_nothing_and_writes_all(network, tmp_path, capfd):
    flags = [f"--onnx_path={network}", *TUNED, f"--records={tmp_path}/r", f"--out={tmp_path}/b"]
    assert kerf.tune.cli.main([*flags, "--quiet"]) == 0
    assert tuple(capfd.readouterr()) == ("", "")
    assert (tmp_path / "b" / "report.html").is_file()
    assert kerf.tune.cli.main([f"--onnx_path={tmp_path}/none.onnx", "--quiet"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_tuning_in_json_has_the_figures_of_the_table(tuned):
    folder, done = tuned
    found, words = json.loads(done.stdout), done.stderr
    report = json.loads((folder / "b" / "report.json").read_text())
    assert found["latency_ms"]["kerf"]["median"] == report["latency_ms"]["kerf"]["median"]
    assert set(found["latency_ms"]) == {"kerf", "onnxruntime"}
    assert "samples" not in found["latency_ms"]["kerf"]
    for key in ("model", "target", "speedup", "bytes", "verified", "max_abs_error"):
        assert found[key] == report[key]
    assert (found["layers"], found["tuning"]["measured"]) == (len(report["layers"]), 2)
    assert found["layers_sparse"] == sum(row["block"] is not None for row in report["layers"]) > 0
    assert all((folder / "b" / name).is_file() for name in ("report.html", "report.json"))
    assert found["files"] == [str(folder / name) for name in ("b", "b/report.html", "b/report.json", "r")]
    assert found["verdict"].split(":")[0] in words
    assert "report:" in words, "a person may watch stderr"


def test_records_in_json(tuned, tmp_path, capfd):
    book = tuned[0] / "r"
    assert kerf.tune.cli.main(["show", f"--records={book}", "--json"]) == 0
    (group,) = said(capfd)[0]["groups"]
    assert sum(row["tried"] for row in group["layers"]) == 2
    assert all(row["best_us"] > 0 for row in group["layers"])
    assert kerf.tune.cli.main(["export-records", f"{tmp_path}/e", f"--records={book}", "--json"]) == 0
    exported = said(capfd)[0]
    assert exported["files"] == [f"{tmp_path}/e"]
    assert kerf.tune.cli.main(["import-records", f"{tmp_path}/e", f"--records={tmp_path}/new", "--json"]) == 0
    assert said(capfd)[0] == {"files": [f"{tmp_path}/new"], "added": exported["records"], "left_out": {}}
    assert kerf.tune.cli.main(["import-records", f"{tmp_path}/e", f"--records={tmp_path}/new", "--quiet"]) == 0
    assert capfd.readouterr().out == ""
    assert kerf.tune.cli.main(["show", f"--records={book}", "--quiet"]) == 0
    assert "best µs" in capfd.readouterr().out, "the table is what was asked for"


def test_inspect_in_json_is_its_table(network, built, capsys):
    assert kerf.deploy.cli.main(["inspect", str(network), "--json"]) == 0
    found, words = said(capsys)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["expand"]["zero_blocks"]["4"] == pytest.approx(0.5, abs=0.01)
    assert layers["expand"]["expected_gain"] > 1
    assert layers["stem"]["expected_gain"] is None
    assert words == ""
    assert kerf.deploy.cli.main(["inspect", str(built), "--json"]) == 0
    kernels = {layer["name"]: layer["kernel"] for layer in said(capsys)[0]["layers"]}
    assert "bsr" in kernels["expand"]
    assert kerf.deploy.cli.main(["inspect", str(network), "--quiet"]) == 0
    assert "expand" in capsys.readouterr().out


def test_any_layers_blocks_are_drawn(network, built, tmp_path, capsys):
    picture = tmp_path / "blocks.svg"
    words = ["inspect", str(network), "--layer=expand", f"--picture={picture}"]
    assert kerf.deploy.cli.main([*words, "--json"]) == 0
    found = said(capsys)[0]
    assert (found["blocks"], found["kept"], found["files"]) == ([8, 16], 0.5, [str(picture)])
    drawn = picture.read_text()
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert 'viewBox="0 0 16 8"' in drawn
    assert drawn.count("<svg") == drawn.count("<style") == 1
    assert kerf.deploy.cli.main(words) == 0
    assert "8x16 blocks of 4 output kernels, 50% kept" in capsys.readouterr().out
    for wrong, message in (
        (["inspect", str(network), "--layer=other"], "has no layer other"),
        (["inspect", str(built), "--layer=expand"], "packed weights"),
        (["inspect", str(network), f"--picture={picture}"], "give --layer"),
    ):
        assert kerf.deploy.cli.main(wrong) == 2
        assert message in capsys.readouterr().err


def test_run_and_compare_in_json_and_quietly(built, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((1, 3, 32, 32), np.float32))
    words = ["run", str(built), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    assert kerf.deploy.cli.main([*words, "--json"]) == 0
    row = {"dtype": "float32", "shape": [1, 10]}
    assert said(capsys)[0] == {**row, "outputs": {"classifier": row}, "files": [str(tmp_path / "y.npy")]}
    job(tmp_path, "half", 89.5, 5.0)
    assert kerf.deploy.cli.main(["compare", str(tmp_path), "--json"]) == 0
    (run,) = said(capsys)[0]["runs"]
    assert (run["name"], run["top1"], run["ms"], run["not_beaten"], run["notes"]) == ("half", 89.5, 5.0, True, [])
    for quiet in (words, ["compare", str(tmp_path)]):
        assert kerf.deploy.cli.main([*quiet, "--quiet"]) == 0
        assert tuple(capsys.readouterr()) == ("", "")
