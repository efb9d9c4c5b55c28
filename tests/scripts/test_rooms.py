"""scripts/: rooms, the names from before there were any, and what each script says of itself."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for p in (ROOT / "scripts").rglob("*.py") if not p.is_symlink())
SCRIPTS = [*(p for p in FILES if not p.name.startswith("_")), ROOT / "docker" / "export_networks.py"]
LINKS = sorted(p for p in (ROOT / "scripts").iterdir() if p.is_symlink())
OLD = [p for p in LINKS if p.suffix == ".py"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def by_old_name(path: Path) -> Path:
    return ROOT / "scripts" / path.name


@pytest.mark.quick
def test_every_script_in_a_room_has_its_old_name():
    """But for those that never had one."""
    rooms = {p.name for p in [*SCRIPTS, *(ROOT / "scripts").rglob("*.sh")] if p.parent.parent == ROOT / "scripts"}
    assert {p.name for p in LINKS} == rooms - {
        "aarch64.sh",
        "api.py",
        "arm_instructions.py",
        "arm_loops.py",
        "mutants.py",
        "recipes.py",
        "bench_int8.py",
        "c_runtime.py",
        "conformance.py",
        "cutting_time.py",
        "int8.py",
        "int8_efficientnet.py",
        "kills.py",
        "soak.py",
        "obs_efficientnet.py",
        "obs_file.py",
        "ort_format.py",
        "zoo.py",
    }


@pytest.mark.quick
@pytest.mark.parametrize("link", LINKS, ids=name)
def test_old_names_are_relative_links(link):
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve().is_relative_to(ROOT / "scripts")
    assert link.resolve().name == link.name


@pytest.mark.quick
@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_says_how_it_is_launched_on_what_and_what_comes(path):
    head = ast.get_docstring(ast.parse(path.read_text()))
    told = re.findall(r"^(Launch|Hardware|Expected):", head, re.MULTILINE)
    assert told == ["Launch", "Hardware", "Expected"]
    assert f"python {name(path)}" in head


@pytest.mark.quick
def test_one_file_changes_where_python_looks():
    assert [name(p) for p in [*FILES, *SCRIPTS] if "sys.path" in p.read_text()] == ["scripts/gpu/_checkout.py"]


@pytest.mark.slow
@pytest.mark.parametrize("path", [*(p for p in SCRIPTS if not by_old_name(p).is_symlink()), *OLD], ids=name)
def test_help_comes_from_anywhere(path, tmp_path):
    pytest.importorskip("torch")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this checkout, whichever is installed
    command = [sys.executable, path, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Launch:" in done.stdout
    assert not list(tmp_path.iterdir())
