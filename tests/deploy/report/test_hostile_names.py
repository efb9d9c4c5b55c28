"""Names in a file are anybody's: on the pages they are words and nothing else."""

import json

import pytest

from kerf.deploy.report import compare, report
from tests.helpers.reports import Page, complete

pytestmark = pytest.mark.quick

NAMES = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "'\" onload=alert(1) x='",
    "{{ 7 * 7 }}",
    "a\u202egnp.x",
]
SUMMARY = {"top1": 90.0, "macs": 50, "macs_dense": 100, "top1_dense": 91.0}


def hostile(name):
    content = complete()
    for key in ("model", "target", "cpu", "date"):
        content[key] = name
    content["commands"] = [name]
    for layer in content["layers"]:
        layer |= {"name": name, "kernel": name, "op": name}
    for pattern in content["block_patterns"]:
        pattern["layer"] = name
    return content


def harmless(source, name):
    page = Page(source)  # refuses src, href and handlers
    assert {"script", "img", "iframe", "object", "form"}.isdisjoint(page.tags)
    assert "\u202e" not in source
    assert "default-src 'none'" in source
    assert "".join(c for c in name if c != "\u202e") in page.text.replace("\xa0", " ")
    assert "49" not in name
    return page


@pytest.mark.parametrize("name", NAMES)
def test_a_report_shows_them_as_they_are(name, tmp_path):
    harmless(report.write(hostile(name), tmp_path).read_text(), name)


@pytest.mark.parametrize("name", NAMES)
def test_so_does_the_page_of_all_runs(name, tmp_path):
    run = tmp_path / name.replace("/", "∕")
    (run / "model.kerf").mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({**SUMMARY, "method": name, "data_set": name}))
    (run / "model.kerf" / "report.json").write_text(json.dumps(hostile(name)))
    (run / "sensitivity.json").write_text(
        json.dumps({"dense_top1": 90.0, "top1": {name: [80.0]}, "levels": [0.5], "images": 10})
    )
    harmless(compare.write(tmp_path).read_text(), name)
