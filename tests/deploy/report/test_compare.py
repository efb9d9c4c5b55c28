"""The page that compares runs."""

import json
import re

import pytest

from kerf.deploy.cli import main
from kerf.deploy.report import compare, tradeoff
from tests.helpers.reports import Page, dense_row, job


def test_the_front_is_what_none_beats_in_both():
    points = [(3, 90), (1, 80), (2, 85), (2, 84), (2.5, 82), (4, 90)]
    assert tradeoff.front(points) == [(1, 80), (2, 85), (3, 90)]


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
    assert "2 of them are beaten by none in both" in page.text
    assert "unbuilt <i>" in page.text
    assert "A <fast> one" in page.text


def test_only_runs_under_the_same_conditions_share_a_figure(tmp_path):
    job(tmp_path, "one", 89.5, 5.0)
    job(tmp_path, "two", 88.0, 3.0, macs=25)
    job(tmp_path, "digits", 99.9, 0.1, data="digits")
    job(tmp_path, "elsewhere", 99.0, 0.2, cpu="Another")
    source = compare.write(tmp_path).read_text()
    page = Page(source)
    assert {"fig-accuracy", "fig-accuracy-2", "fig-accuracy-3", "fig-speedup"} <= page.ids
    assert "fig-speedup-2" not in page.ids, "one run has no course"
    assert "4 of them are beaten by none under the same conditions" in page.text
    figures = re.findall(r'id="fig-accuracy.*?</figure>', source, re.DOTALL)
    assert [sorted(re.findall(r"<title>([^<]*)</title>", figure)) for figure in figures] == [
        ["one", "two"], ["elsewhere"], ["digits"],
    ]  # fmt: skip


def test_runs_of_one_sparsity_have_no_course_over_it(tmp_path):
    job(tmp_path, "one", 89.5, 5.0)
    job(tmp_path, "two", 88.0, 3.0)
    assert "fig-speedup" not in Page(compare.write(tmp_path).read_text()).ids


def test_every_bundle_of_a_run_counts(tmp_path):
    job(tmp_path, "run", 89.5, 5.0)
    (tmp_path / "run" / "model.kerf").rename(tmp_path / "run" / "one.kerf")
    (tmp_path / "run" / "two.kerf").mkdir()
    (tmp_path / "run" / "two.kerf" / "report.json").write_bytes((tmp_path / "run/one.kerf/report.json").read_bytes())
    assert [run.name for run in compare.runs(tmp_path)] == ["run/one.kerf", "run/two.kerf"]


def test_zeros_that_bring_no_speed_are_said(tmp_path):
    job(tmp_path, "loose", 89.5, 5.0, layers=[dense_row("a", zeros=0.75, zero_blocks=0.01)])
    page = Page(compare.write(tmp_path).read_text())
    assert "notes" in page.ids
    assert "loose: 75" in page.text
    assert "they bring no speed" in page.text


def test_neighbours_that_compare_are_told_to_a_report(tmp_path):
    for name, data in (("this", "cifar10"), ("near", "cifar10"), ("other data", "digits")):
        job(tmp_path, name, 89.0, 5.0, data=data)
    job(tmp_path, "torn", 89.0, 5.0)
    (tmp_path / "torn" / "summary.json").write_text('{"top1"')
    summary = json.loads((tmp_path / "this" / "summary.json").read_text())
    built = json.loads((tmp_path / "this" / "model.kerf" / "report.json").read_text())
    (near,) = compare.others(tmp_path / "this", summary, built)
    assert near == {"name": "near", "top1": 89.0, "ms": 5.0, "sparsity": 0.5, "speedup": 2.0}


def test_a_percentile_that_is_no_number_is_one_line(tmp_path, capsys):
    job(tmp_path, "half", 89.5, 5.0)
    path = tmp_path / "half" / "model.kerf" / "report.json"
    report = json.loads(path.read_text())
    report["latency_ms"]["kerf"]["p10"] = "4.9"
    path.write_text(json.dumps(report))
    assert main(["compare", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "latency_ms[...].p10" in line


def test_sensitivities_are_shown_with_the_most_delicate_layer_first(tmp_path):
    job(tmp_path, "half", 89.5, 5.0)
    found = {"levels": [0.5, 0.9], "loss": {}, "dense_top1": 90.0, "dense_loss": 0.1, "images": 512}
    found["top1"] = {"tough.weight": [90.5, 89.0], "delicate.weight": [80.0, 10.0]}
    (tmp_path / "half" / "sensitivity.json").write_text(json.dumps(found))
    source = compare.write(tmp_path).read_text()
    page = Page(source)
    assert "fig-sensitivity" in page.ids
    assert page.text.index("delicate") < page.text.index("tough")
    assert "90.00 % of 512 images" in page.text
    lost = [float(x) for x in re.findall(r"--lost:(\d+)%", source)]
    assert lost == [round(100 * (10 / 80) ** 0.5), 100, 0, round(100 * (1 / 80) ** 0.5)]
    (tmp_path / "half" / "sensitivity.json").write_text("{}")
    assert main(["compare", str(tmp_path)]) == 2


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
