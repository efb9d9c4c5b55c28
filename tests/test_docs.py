"""Pages of documentation: their programs run as they stand, their links lead somewhere, their tables are whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kerf.deploy.report import schema
from kerf.deploy.runtime import manifest

ROOT = Path(__file__).parents[1]
DATED = ROOT / "docs" / "benchmarks"  # tell what was run on their day, by the names of that day
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, program) in the order of the page."""
    return re.findall(r"```(sh|python)\n(.*?)```", page.read_text(), re.DOTALL)


README = [block for language, block in blocks(ROOT / "README.md") if language == "python"]
TUTORIAL = blocks(ROOT / "docs" / "tutorial.md")


@pytest.fixture
def execute(tmp_path):
    """Runs a block in an empty folder, with the commands of this checkout; its output."""
    binaries = tmp_path / ".bin"
    binaries.mkdir()
    (binaries / "kerf").write_text(f'#!/bin/sh\nexec {sys.executable} -m kerf "$@"\n')
    (binaries / "kerf").chmod(0o755)
    path = f"{binaries}:{Path(sys.executable).parent}:/usr/bin:/bin"

    def run(language: str, block: str) -> str:
        command = ["bash", "-ec", block] if language == "sh" else [sys.executable, "-c", block]
        environment = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    return run


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    assert [len([line for line in block.splitlines() if line.strip()]) <= 25 for block in README] == [True]


def test_the_readmes_program_runs(execute, tmp_path):
    pytest.importorskip("torchvision")
    said = execute("python", README[0])
    assert "Pruned(one_by_n" in said
    assert "Bundle('model.kerf'" in said
    assert (tmp_path / "model.kerf" / "report.html").is_file()


def test_the_tutorial_has_its_steps():
    text = "".join(block for _, block in TUTORIAL)
    for step in ("kerf prune", "kerf sensitivity", "--speedup_target", "kerf inspect", "kerf tune", "kerf.load"):
        assert step in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs(execute, tmp_path):
    pytest.importorskip("torch")
    for language, block in TUTORIAL:
        execute(language, block)
    assert (tmp_path / "runs/tutorial/half/model.kerf/report.html").is_file()


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as a page of GitHub's names them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [p for p in PAGES if DATED not in p.parents], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_are_there(page):
    named = re.findall(r"\b(?:scripts|compress|kernels|deploy|tune|tests|docker|kerf)/[\w/.]*\w", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    "table",
    [
        *(schema.Report, schema.LayerReport, schema.Latency, schema.Speedup, schema.Bytes),
        *(manifest.Manifest, manifest.LayerKernel, manifest.Needs),
    ],
    ids=lambda table: table.__name__,
)
def test_every_key_of_a_file_is_told(table):
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "formats.md").read_text()))
    assert set(table.__annotations__) <= told


def test_numbers_of_formats_are_told():
    text = (ROOT / "docs" / "formats.md").read_text()
    assert f"`schema`, now {schema.SCHEMA} " in text
    assert f"`format`, now {manifest.FORMAT} " in text


def test_every_key_of_a_summary_is_told():
    pytest.importorskip("torch")
    from kerf.compress.command.summary import Summary, TrainedWith

    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "formats.md").read_text()))
    assert {*Summary.__annotations__, *TrainedWith.__annotations__} <= told


def test_the_reference_says_what_the_tables_say():
    pytest.importorskip("torch")
    from scripts.maintain import reference

    assert reference.FILE.read_text() == reference.text(), "run python scripts/maintain/reference.py"


def test_the_table_of_recipes_is_that_of_the_code():
    from scripts.maintain import recipes

    assert recipes.FILE.read_text() == recipes.text(), "run python scripts/maintain/recipes.py"


def test_the_api_page_says_what_the_docstrings_say():
    pytest.importorskip("torch")
    from scripts.maintain import api

    assert api.FILE.read_text() == api.text(), "run python scripts/maintain/api.py"
