"""What the Dockerfiles take from the checkout lies there, and .dockerignore lets it through."""

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SENT = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

pytestmark = pytest.mark.quick


def is_sent(path: str) -> bool:
    """Whether a file or folder goes to the builder: all is ignored but what a line with ! names, or holds."""
    whole = PurePosixPath(path)
    return any(fnmatch(str(part), pattern) for pattern in SENT for part in (whole, *whole.parents))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda p: p.name)
def test_what_is_copied_or_run_is_there(file):
    text = file.read_text().replace("\\\n", " ")
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)]
    run = re.findall(r"(?<![\w/])((?:scripts|docker)/[\w/]+\.(?:py|sh))", text)
    for path in {*(p for sources in copied for p in sources if p != "."), *run}:
        assert (ROOT / path).exists(), path
        assert is_sent(path), path


def test_what_is_installed_is_sent():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = [project["project"]["readme"], *project["project"].get("license-files", [])]
    for path in (*files, *project["tool"]["setuptools"]["package-dir"].values()):
        assert (ROOT / path).exists(), path
        assert is_sent(path), path


def test_scripts_in_an_image_come_with_what_they_call():
    called = set(re.findall(r"scripts/[\w/]+\.py", (ROOT / "scripts" / "bench_gpu.sh").read_text()))
    assert called
    for path in called:
        assert (ROOT / path).is_file()
        assert is_sent(path), path
