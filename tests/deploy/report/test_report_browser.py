"""Both pages in a real Chromium: on a phone and a wide screen, light, dark and printed. Skips where there is none."""

import json
import re
from pathlib import Path

import pytest

from kerf.deploy.report import compare, report
from scripts.maintain import screenshots
from tests.helpers.reports import complete, dense_row, job, row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chrome():
    pytest.importorskip("playwright", reason="no playwright: pip install '.[browser]'")
    try:
        with screenshots.browser() as opened:
            yield opened
    except FileNotFoundError as error:
        pytest.skip(str(error))


def crowded() -> dict:
    """A report with everything that takes room: long names, many layers, runs and phases, a remark."""
    content = complete()
    content["layers"] = [
        row(f"features.{i}.a_block_with_a_long_name.conv.{i % 3}", density=0.1 + i / 60, kerf_us=3.0 + i, dense_us=90.0)
        | {"together_with": "features.99.another_long_name.conv.2" if i % 5 == 0 else None}
        for i in range(40)
    ] + [dense_row("classifier", zeros=0.6, zero_blocks=0.5)]
    content["runs"] = [
        {
            "name": f"a run of this folder, {i}",
            "top1": 80 + i % 7,
            "ms": 3 + i / 9,
            "sparsity": 0.3 + i / 40,
            "speedup": 2.0,
        }
        for i in range(14)
    ]
    content["training"] = [
        {"phase": f"step {i // 2}", "epoch": i % 2, "loss": 9 / (i + 1), "top1": 60 + i, "val_loss": 8 / (i + 1)}
        for i in range(24)
    ]
    random = [f"{i * 2654435761 % 2**32:032b}" for i in range(1, 33)]
    content["block_patterns"] = [
        {"layer": r["name"], "n": 4, "shape": [128, 32, 3, 3], "blocks": [32, 32], "kept": 0.5, "rows": random}
        for r in content["layers"][:20]
    ]
    content["commands"] = ["python imagenet.py --a_flag_without_end=" + "x" * 200]
    return content


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for i in range(14):
        loose = [dense_row("a", zeros=0.75, zero_blocks=0.01)] if i % 6 == 0 else None
        job(folder, f"a-run-with-a-name-of-its-own-{i}", 85 + (i * 5 % 9) / 3, 3 + i / 9, macs=90 - 5 * i, layers=loose)
    job(folder, "alone", 99.0, 1.0, data="digits")
    found = {"levels": [0.25, 0.5, 0.75, 0.9], "loss": {}, "dense_top1": 90.0, "dense_loss": 0.1, "images": 512}
    found["top1"] = {f"layer{i}.a_long_name.conv.weight": [89.0, 80.0 - i, 60.0, 10.0] for i in range(20)}
    (folder / "alone" / "sensitivity.json").write_text(json.dumps(found))
    return {"report": report.write(crowded(), folder / "report"), "compare": compare.write(folder)}


def luminance(colour: str) -> float:
    """Relative luminance of a CSS rgb(...) (WCAG 2)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", screenshots.WIDTHS)
@pytest.mark.parametrize("name", ["report", "compare"])
def test_nothing_overlaps_overflows_or_complains(chrome, pages, name, width, scheme):
    with screenshots.opened(chrome, pages[name], width, scheme) as (page, said):
        assert not said
        assert not screenshots.faults(page)
        figures = page.evaluate("[...document.querySelectorAll('figure')].map(f => f.id).filter(Boolean)")
        expected = {
            "report": {"latency", "rounds", "accuracy", "speedup", "layers", "layer-speedup", "pattern", "patterns"},
            "compare": {"accuracy", "accuracy-2", "speedup", "sensitivity"},
        }[name]
        assert expected <= {figure.removeprefix("fig-") for figure in figures}
        ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (ground < 0.1) == (scheme == "dark")
        for words in ("h1", ".soft", ".note", "figcaption"):
            ink = luminance(page.evaluate(f"getComputedStyle(document.querySelector('{words}')).color"))
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, words


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_print_fits_its_paper_and_is_light(chrome, pages, name):
    a4 = 720  # CSS pixels between the margins
    with screenshots.opened(chrome, pages[name], a4, "dark") as (page, said):
        page.emulate_media(media="print")
        assert not screenshots.faults(page)
        assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == pytest.approx(1)
        assert page.pdf(format="A4").startswith(b"%PDF")
        assert not said


def test_faults_are_found(chrome, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<div style="width:900px">wide</div><figure id="f"></figure><p style="margin-top:-30px">over</p>'
        '<svg width="40" height="20"><text x="0" y="15">far too long a label</text></svg>'
        '<script>console.error("loud")</script>'
    )
    with screenshots.opened(chrome, page, 400) as (opened, said):
        found = screenshots.faults(opened)
    assert said == ["console: loud"]
    for words in (
        "px wide in a window of 400",
        "figure f is empty",
        '"far too long a label" is cut off',
        '"wide" and text "over" overlap',
    ):
        assert [fault for fault in found if words in fault], found


def test_pictures_are_small(chrome, pages, tmp_path):
    with screenshots.opened(chrome, pages["compare"], 400) as (page, _):
        size = screenshots.photograph(page, tmp_path / "p.png", 500)
    assert 0 < size == (tmp_path / "p.png").stat().st_size <= screenshots.MOST_BYTES
