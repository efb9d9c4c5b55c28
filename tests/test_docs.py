"""What README and docs say: their programs run, their links lead somewhere, their generated pages are up to date."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)


def run(language: str, block: str, folder: Path) -> None:
    command = ["bash", "-ec", block] if language == "sh" else [sys.executable, "-c", block]
    binaries = Path(sys.executable).parent
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_tutorial_has_its_steps():
    text = "".join(block for _, block in TUTORIAL)
    for word in ("imagenet.py", "kerf sensitivity", "--speedup_target", "inspect", "model_tune.py", "kerf.load"):
        assert word in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_runs(tmp_path):
    pytest.importorskip("torch")
    for name in ("imagenet.py", "model_tune.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for language, block in TUTORIAL:
        run(language, block, tmp_path)
    assert (tmp_path / "runs/tutorial/half/model.kerf/report.html").is_file()


def test_readmes_program_runs(tmp_path):
    pytest.importorskip("torchvision")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = [line for line in block.splitlines() if line.strip()]
    assert len(code) <= 25
    run("python", block, tmp_path)
    assert (tmp_path / "model.kerf" / "report.html").is_file()


def test_readme_is_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_that_are_named_exist(page):
    for script in re.findall(r"(?<![\w/])((?:scripts|docker)/[\w/]+\.(?:py|sh|Dockerfile))", page.read_text()):
        assert (ROOT / script).is_file(), script


def test_the_reference_says_what_the_tables_say():
    pytest.importorskip("torch")
    from scripts.maintain import reference

    assert reference.FILE.read_text() == reference.text(), "run python scripts/maintain/reference.py"


def test_the_api_page_says_what_the_docstrings_say():
    pytest.importorskip("torch")
    from scripts.maintain import api

    assert api.FILE.read_text() == api.text(), "run python scripts/maintain/api.py"
