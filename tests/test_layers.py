"""Which package may import what: stages talk through files, so that each runs alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"compress", "kernels", "deploy", "tune"}
ALLOWED = {"compress": set(), "kernels": set(), "deploy": {"kernels"}, "tune": {"kernels", "deploy"}}
FORBIDDEN = {
    "compress": {"tvm"},
    "kernels": {"torch", "onnx", "onnxruntime", "sklearn"},
    "deploy": {"torch", "torchvision", "safetensors"},
    "tune": {"torch", "torchvision", "onnx", "safetensors"},
}
# export is where torch ends; cli joins
EXCEPTIONS = {("deploy/export.py", "torch"), ("compress/cli.py", "deploy"), ("compress/cli.py", "tune")}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


FILES = [p for package in sorted(OURS) for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_within_layers(path):
    relative = str(path.relative_to(ROOT))
    package = relative.split("/")[0]
    names = {n for n in imported(path) if (relative, n) not in EXCEPTIONS}
    assert not names & FORBIDDEN[package]
    assert names & OURS <= ALLOWED[package] | {package}


def test_files_hold_one_idea():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
