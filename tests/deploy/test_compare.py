"""The page that compares runs."""

import json

import pytest
from test_report import Page

from deploy import compare
from deploy.cli import main


def job(folder, name, top1, ms, macs=50):
    (folder / name / "model.kerf").mkdir(parents=True)
    summary = {"method": "one_by_n", "top1": top1, "top1_dense": 90.0, "macs": macs, "macs_dense": 100}
    (folder / name / "summary.json").write_text(json.dumps(summary))
    if ms:
        latency = {"median": ms, "p10": ms * 0.9, "p90": ms * 1.1, "samples": [ms]}
        speedup = {"against": "onnxruntime", "median": 10 / ms, "ci95": [9 / ms, 11 / ms]}
        built = {"latency_ms": {"kerf": latency}, "speedup": speedup, "cpu": "A <fast> one"}
        (folder / name / "model.kerf" / "report.json").write_text(json.dumps(built))


def test_the_front_is_what_none_beats_in_both():
    points = [(3, 90), (1, 80), (2, 85), (2, 84), (2.5, 82), (4, 90)]
    assert compare.front(points) == [(1, 80), (2, 85), (3, 90)]


def test_the_page_stands_alone_and_has_every_run(tmp_path, capsys):
    job(tmp_path, "half", 89.5, 5.0)
    job(tmp_path, "more", 88.0, 3.0, macs=25)
    job(tmp_path, "worse", 87.0, 4.0, macs=30)
    job(tmp_path, "unbuilt <i>", 91.0, None)
    assert main(["compare", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "compare.html")
    page = Page((tmp_path / "compare.html").read_text())
    assert {"fig-accuracy", "fig-speedup", "runs"} <= page.ids
    assert "4 runs" in page.text
    assert "2 of them are beaten by none" in page.text
    assert "unbuilt <i>" in page.text
    assert "A <fast> one" in page.text


def test_runs_without_bundles_have_no_figures(tmp_path):
    job(tmp_path, "a", 91.0, None)
    compare.write(tmp_path)
    page = Page((tmp_path / "compare.html").read_text())
    assert "fig-accuracy" not in page.ids
    assert "build them with model_tune.py" in page.text


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_bad_input_is_one_line(tmp_path, capsys, content):
    assert main(["compare", str(tmp_path)]) == 2
    assert "no finished runs" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text(content)
    assert main(["compare", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "summary.json" in line
    assert not (tmp_path / "compare.html").exists()
