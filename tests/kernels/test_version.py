"""The version of kernels' code follows code, and nothing else."""

import shutil
import subprocess
import sys

import pytest

from kerf.kernels import version
from kerf.kernels.version import HERE, code_version, digest

pytestmark = pytest.mark.quick


@pytest.fixture
def edited(tmp_path):
    """edited(old, new): the digest of a copy of cpu/layout.py and cpu/machine.py with ``old`` replaced in the first."""

    def edit(old: str, new: str) -> str:
        files = [shutil.copy(HERE / "cpu" / name, tmp_path / name) for name in ("layout.py", "machine.py")]
        text = files[0].read_text()
        assert old in text
        files[0].write_text(text.replace(old, new))
        return digest(files)

    return edit


SAME = {
    "docstring": ('"""Floats from one plane', '"""How many floats from one plane'),
    "module's docstring": ('"""How images lie in memory', '"""Where images are'),
    "comment": ("  # floats of a cache line, and the widest vector", ""),
    "layout": ("LINE = 16", "LINE = (\n    16\n)"),
}
OTHER = {
    "constant": ("LINE = 16", "LINE = 32"),
    "operator": ("if pixels < LINE else", "if pixels <= LINE else"),
    "default": ("def pitch(pixels: int)", "def pitch(pixels: int = 1)"),
}


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_code_keeps_records(edited, change):
    assert edited(*SAME[change]) == edited("LINE = 16", "LINE = 16")


@pytest.mark.parametrize("change", OTHER)
def test_what_changes_code_voids_them(edited, change):
    assert edited(*OTHER[change]) != edited("LINE = 16", "LINE = 16")


def test_backends_have_versions_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(version, "HERE", shutil.copytree(HERE, tmp_path / "kernels"))
    before = [code_version.__wrapped__(name) for name in ("cpu", "cuda")]
    assert len(set(before)) == 2
    with (version.HERE / "cuda" / "emit" / "simt.py").open("a") as file:
        file.write("\nADDED = 1\n")
    after = [code_version.__wrapped__(name) for name in ("cpu", "cuda")]
    assert [a == b for a, b in zip(before, after)] == [True, False]


def test_what_only_checks_kernels_is_none_of_their_code(monkeypatch, tmp_path):
    monkeypatch.setattr(version, "HERE", shutil.copytree(HERE, tmp_path / "kernels"))
    before = code_version.__wrapped__("cuda")
    (version.HERE / "cuda" / "host" / "cases.py").write_text("ADDED = 1\n")
    assert code_version.__wrapped__("cuda") == before


def test_a_problem_is_imported_without_the_compiler():
    code = "import sys; import kerf.kernels.problem, kerf.kernels.bsr; print('tvm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
