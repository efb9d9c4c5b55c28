"""The report: what it claims, what it refuses, and that the page stands alone. Parsed, not looked at."""

import copy
import itertools
import json
import re

import pytest

from kerf.deploy.report import claims, figures, labels, report
from tests.helpers.reports import Page, complete, dense_row, minimal, row

pytestmark = pytest.mark.quick


def page(content: dict, folder) -> Page:
    return Page(report.write(content, folder).read_text())


def test_page_stands_alone_with_every_figure(tmp_path):
    path = report.write(complete(), tmp_path / "run")
    source = path.read_text()
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json"]
    assert not re.search(r"https?:|@import|url\(", source)
    parsed = Page(source)
    assert {"script", "link", "img", "iframe"}.isdisjoint(parsed.tags)
    figures_present = {"fig-latency", "fig-rounds", "fig-layers", "fig-pattern", "fig-patterns", "fig-training"}
    figures_present |= {"fig-accuracy", "fig-speedup"}
    assert figures_present | {"verdict", "layers", "environment", "commands"} <= parsed.ids
    assert not [n for n in parsed.numbers if "nan" in n or "inf" in n]
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


def test_json_is_the_report(tmp_path):
    content = complete()
    before = copy.deepcopy(content)
    report.write(content, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == before == content


def test_page_tells_what_was_measured(tmp_path):
    text = page(complete(), tmp_path).text
    for claim in (
        "net <1×4> on Some CPU",
        "1.25× faster than OpenVINO",
        "95 % interval 1.20–1.30",
        "5.00 → 4.00 ms",
        "90.42 → 89.90 %",
        "−0.52 points",
        "14.0 MB → 9.20 MB",
        "2.5e-06",
        "16×8×1×1",
        "tile=6",
        "python model_tune.py --bsr 4",
        "avx2 fma",
    ):
        assert claim in text
    assert text.index("faster than") < text.index("Milliseconds per call"), "the verdict comes first"


def test_optional_parts_may_be_missing(tmp_path):
    content = minimal() | {"speedup": None, "latency_ms": {"kerf": {"median": 4, "p10": 4, "p90": 4, "samples": 100}}}
    for layer in content["layers"]:
        layer |= {"kerf_us": None, "dense_us": None, "peak_share": None, "config": None}
    parsed = page(content, tmp_path)
    assert "Not compared" in parsed.text
    assert "fig-latency" in parsed.ids
    absent = {"fig-rounds", "fig-pattern", "fig-training", "fig-accuracy", "fig-speedup", "commands"}
    assert absent.isdisjoint(parsed.ids)


def test_a_layer_that_ran_dense_does_not_look_sparse(tmp_path):
    content = minimal() | {"layers": [row("skipped"), dense_row("stored", zeros=0.6, zero_blocks=0.6)], "bsr": 4}
    source = report.write(content, tmp_path).read_text()
    items = re.findall(r"<li>.*?</li>", source[source.index('<ul class="layers">') :], re.DOTALL)
    assert "sparse, density 50" in items[0]
    assert items[0].count("<rect") == 2
    assert 'class="kerf"' in items[0]
    assert "dense, 60\N{NO-BREAK SPACE}% of its blocks zero and not skipped" in items[1]
    assert items[1].count("<rect") == 1
    assert 'class="plain"' in items[1]
    assert "sparse" not in items[1]
    assert claims.notes(content) == [
        "A layer with zero blocks ran dense (stored): the dense kernel was faster, or fewer blocks are zero than "
        "--sparsity asks for."
    ]
    assert claims.notes(content)[0] in Page(source).text
    assert claims.notes(content)[0] in " ".join(report.table(content).split())


def test_zeros_that_are_not_in_blocks_are_said_to_bring_no_speed(tmp_path):
    scattered = [dense_row(name, zeros=0.75, zero_blocks=0.02) for name in "ab"]
    content = minimal() | {"layers": scattered, "bsr": 4}
    text = page(content, tmp_path).text
    assert "75 % of the weights are zero, but only 2 % are in whole zero blocks of 4" in text
    assert "they bring no speed" in text
    assert "No layer ran sparse" in text
    assert not claims.notes(minimal() | {"layers": [row("a"), dense_row("b", zeros=0, zero_blocks=0)]})
    whole = [row("a", zeros=0.75, zero_blocks=0.7, density=0.3)]
    assert not claims.notes(minimal() | {"layers": whole})


def test_multiply_accumulates_are_those_that_kernels_do(tmp_path):
    accuracy = {"top1": 90.0, "macs_dense": 300e6, "macs": 75e6}
    content = minimal() | {"layers": [dense_row("a", macs=300_000_000)], "accuracy": accuracy}
    text = page(content, tmp_path).text
    assert "300 → 300 M" in text
    assert "on weights that are not zero: 75.0 M" in text


def test_accuracy_is_drawn_against_latency_beside_the_network_before_pruning(tmp_path):
    content = complete()
    source = report.write(content, tmp_path).read_text()
    drawn = re.findall(r'<circle [^>]*class="(\w+)"><title>([^<]*)</title>', source)
    assert {("kerf", "this run"), ("dense", "before pruning"), ("beside", "sparser &lt;b&gt;")} <= set(drawn)
    content["accuracy"] |= {"widths": {"a": [16, 8]}}  # its layers are smaller: the dense engine ran another network
    assert "before pruning" not in report.render(content)
    content["runs"], content["accuracy"]["top1"] = [], 89.0
    assert "fig-accuracy" not in report.render(content), "a single run is no trade"


@pytest.mark.parametrize(
    ("median", "interval", "says"),
    [
        (1.02, [0.98, 1.05], "No measurable difference from OpenVINO"),
        (1.05, [1.0, 1.1], "No measurable difference from OpenVINO"),
        (0.8, [0.78, 0.83], "Slower than OpenVINO"),
        (1.4, [1.38, 1.45], "1.40× faster than OpenVINO"),
    ],
)
def test_wording_follows_the_interval(median, interval, says, tmp_path):
    content = minimal() | {"speedup": {"against": "openvino", "median": median, "ci95": interval}}
    text = page(content, tmp_path).text
    assert says in text
    assert says in report.table(content)
    if "faster" not in says:
        assert "faster than" not in text
        assert f"{median:.2f}× faster" not in report.table(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verified": False}, "was not verified"),
        ({"verified": "yes"}, "was not verified"),
        ({"max_abs_error": float("nan")}, "not JSON compliant"),
    ],
)
def test_unfit_reports_leave_nothing_behind(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        report.write(minimal() | change, tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_keys_are_named(tmp_path):
    content = minimal()
    del content["layers"], content["cpu"]
    with pytest.raises(ValueError, match="the report lacks cpu, layers"):
        report.write(content, tmp_path)


def test_table_lists_engines_with_kerf_first():
    lines = report.table(minimal()).splitlines()
    assert "net <1×4>, batch 1, 1 thread, Some CPU" in lines[0]
    order = [next(i for i, line in enumerate(lines) if name in line) for name in ("kerf", "OpenVINO", "ONNX Runtime")]
    assert order == sorted(order)
    assert "\x1b" not in report.table(minimal())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (4.019, "4.02"), (41.52, "41.5"), (1234.5, "1234"), (9.999, "10.0")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert figures.number(value) == text


@pytest.mark.parametrize(("low", "high"), [(0, 7.2), (0, 0.003), (99.7, 99.9), (-3, 12000)])
def test_ticks_are_few_round_and_inside(low, high):
    found = figures.ticks(high, low)
    assert 2 <= len(found) <= 6
    assert low <= found[0]
    assert found[-1] <= high


def test_block_figure_fills_exactly_the_kept_cells():
    drawn = figures.blocks(["0110", "1001"], "p")
    assert re.search(r'<path d="([^"]*)"', drawn)[1] == "M1 0.5h2M0 1.5h1m2 0h1"


def test_names_stand_apart_from_dots_and_from_each_other():
    dots = [(20 + 7 * (i % 4), 100 + 9 * (i // 4)) for i in range(12)] + [(97, 5), (11, 265)]
    names = [f"run {i} of this folder" for i in range(12)] + ["at the right", "x" * 60]
    placed = labels.place(dots, names, 10, 270)
    assert sum(spot is not None for spot in placed) >= 5
    for width in (labels.NARROW, 1200):
        boxes = [(x * width / 100 - 6, x * width / 100 + 6, y - 6, y + 6) for x, y in dots]
        for (x, _), spot in zip(dots, placed):
            if spot:
                text, dx, base, anchor = spot
                start = x * width / 100 + dx - (labels.width(text) if anchor == "end" else 0)
                boxes.append((start, start + labels.width(text), base - 10, base + 3))
                assert 0.1 * width <= start
                assert start + labels.width(text) <= width
                assert len(text) <= labels.LONGEST
        named = boxes[len(dots) :]
        for i, a in enumerate(named):
            for b in [*boxes[: len(dots)], *named[:i]]:
                assert not (a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3])


def test_names_of_phases_do_not_run_into_each_other():
    xs = list(range(1, 21))
    marks = [(x, f"fine-tune {x}") for x in xs]
    drawn = figures.lines([("train", xs, xs)], "loss", marks)
    assert drawn.count('class="mark"') == 20
    written = [float(x) for x in re.findall(r'<text x="([\d.]+)%" dx="-?4"', drawn)]
    assert 2 <= len(written) <= 4
    assert min(b - a for a, b in itertools.pairwise(written)) * labels.NARROW / 100 > labels.width("fine-tune 9")


def test_layers_that_were_not_timed_take_no_part_in_sums():
    rows = [row("a"), row("b", kerf_us=None, dense_us=None), dense_row("c", kerf_us=None)]
    assert report.by_kernel(rows) == [
        {"kernel": "bsr", "layers": 2, "timed": 1, "kerf_us": 5.0, "dense_us": 8.0},
        {"kernel": "dense", "layers": 1, "timed": 0, "kerf_us": 0.0, "dense_us": 0.0},
    ]
    source = report.render(minimal() | {"layers": rows})
    assert '<td>dense</td><td class="n">1</td><td class="n">0</td>\n<td class="n">–</td><td class="n">–</td>' in source


def test_a_single_epoch_is_a_dot():
    drawn = figures.lines([("train", [1], [0.5]), ("validation", [1], [0.7])], "loss")
    assert re.findall(r'<circle [^>]*class="(\w+)"', drawn) == ["train", "validation"]
    assert "<circle" not in figures.lines([("train", [1, 2], [0.5, 0.4])], "loss")


def test_bars_are_proportional_to_medians_and_stay_inside():
    content = minimal()["latency_ms"]
    drawn = figures.latency([(name, name, m) for name, m in content.items()])
    widths = [float(w) for w in re.findall(r'<rect x="0" y="\d+" width="([\d.]+)%"', drawn)]
    assert [w / widths[0] for w in widths] == pytest.approx([1, 6 / 4, 5 / 4], rel=1e-3)
    assert max(float(x) for x in re.findall(r'x[12]="([\d.]+)%"', drawn)) <= 100
