"""Which room may import which: no import upwards, no circle, and each stage without the other's heavy libraries."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import tomllib

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PACKAGES = ("kerf", "kernels", "deploy", "tune", "compress")
# Rooms (or single files, before their room's others), the lowest first: what a file imports never stands behind it.
ORDER = {
    "kerf": ["errors", "files", "failures", "gate", "temporary", "children", "console", "bare_names", ""],
    "kernels": [
        "cpu/layout",
        "cpu/machine",
        "cpu/emit",
        "cpu",
        "cuda/layout",
        "cuda/emit",
        "cuda",
        "cuda/host",
        "backends",
        "__init__",
    ],
    "deploy": [
        *("frontend/onnx_graph", "frontend/network", "frontend/windows", "frontend/passes"),
        *("frontend/operators", "frontend", "quantise", "partition"),
        *("runtime", "measure", "compiler", "plans", "embed", "report", "from_torch", ""),
    ],
    "compress": [
        *("data", "models", "network", "units", "training", "measures", "second_order", "pruning", "onnx_file"),
        *("methods/drl", "methods", "compat", "command", ""),
    ],
}
ORDER["kernels"] = [
    *(
        "version",
        "config",
        "tensor_type",
        "precision",
        "pointwise/activation",
        "problem",
        "bsr",
        "kernel",
        "vector",
        "lowering",
    ),
    *("reference", "pointwise/exponential", "epilogue", "pointwise", "form"),
    *ORDER["kernels"],
]
ALLOWED = {"kerf": set(), "compress": set(), "kernels": set(), "deploy": {"kernels"}, "tune": {"kernels", "deploy"}}
FORBIDDEN = {
    "kerf": {"tvm", "torch", "onnx", "onnxruntime"},
    "compress": {"tvm"},
    "kernels": {"torch", "onnx", "onnxruntime", "sklearn"},
    "deploy": {"torch", "torchvision", "safetensors"},
    "tune": {"torch", "torchvision", "onnx", "safetensors"},
}
# zoo makes networks, peers races torch, export is where torch ends; a run of pruning exports, and times networks
EXCEPTIONS = {(file, "torch") for file in ("kerf/zoo.py", "deploy/export.py", "deploy/measure/peers.py")}
EXCEPTIONS |= {(f"deploy/from_torch/{file}.py", "torch") for file in ("plain_weights", "signature", "traced")}
EXCEPTIONS |= {("compress/command/deployment.py", "deploy"), ("compress/command/deployment.py", "tune")}
# the room that prunes .onnx files reads them as the deploying side does
EXCEPTIONS |= {(f"compress/onnx_file/{file}.py", "deploy") for file in ("program", "pruning", "timed", "cli")}
EXCEPTIONS |= {(f"compress/onnx_file/{file}.py", "deploy") for file in ("channels", "channel_rules", "rearranging")}
EXCEPTIONS |= {("compress/onnx_file/timed.py", "tune")}
MOST_FILES = 15  # of a folder of the packages, methods/ apart


def imported(path: Path) -> set[str]:
    """Names of modules, kerf.… or another library's."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("kerf.")} & set(PACKAGES)


FILES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_within_packages(path):
    relative = str(path.relative_to(ROOT))
    package, names = relative.split("/")[0], imported(path)
    tops = {n.split(".")[0] for n in names}
    assert not {n for n in tops & FORBIDDEN[package] if (relative, n) not in EXCEPTIONS}
    assert not tops & {"compress", "kernels", "deploy", "tune"}, "import kerf.…: the bare names are not installed"
    found = {n for n in ours(names) if (relative, n) not in EXCEPTIONS}
    if package != "kerf":
        assert found <= ALLOWED[package] | {package}


def place(package: str, path: str) -> int:
    """Of a file (its path below the package, no suffix) in the order of its package."""
    fitting = [r for r in ORDER[package] if path == r or path.startswith(f"{r}/") or not r]
    return ORDER[package].index(max(fitting, key=len))


@pytest.mark.parametrize("package", ORDER)
def test_nothing_imports_upwards(package):
    files = {
        p.relative_to(ROOT / package).with_suffix("").as_posix() for p in FILES if p.is_relative_to(ROOT / package)
    }
    prefix = "kerf." if package == "kerf" else f"kerf.{package}."
    upwards = []
    for file in sorted(files):
        for name in imported(ROOT / package / f"{file}.py"):
            path = name.removeprefix(prefix).replace(".", "/")
            target = next((t for t in (path, path.rpartition("/")[0]) if t in files), None)
            if name.startswith(prefix) and target and place(package, target) > place(package, file):
                upwards.append((file, target))
    assert not upwards


def test_no_module_imports_itself_through_others():
    modules = {
        (p.relative_to(ROOT) if p.is_relative_to(ROOT / "kerf") else Path("kerf", p.relative_to(ROOT))): p
        for p in FILES
    }
    names = {".".join(m.with_suffix("").parts).removesuffix(".__init__"): imported(p) for m, p in modules.items()}
    graph = {
        m: {n if n in names else n.rpartition(".")[0] for n in found} & set(names) - {m} for m, found in names.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_what_is_installed_is_what_there_is():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT) for p in FILES if p.name == "__init__.py"}
    names = {".".join(f.parts) if f.parts[0] == "kerf" else ".".join(("kerf", *f.parts)) for f in folders}
    assert set(setuptools["packages"]) == names
    assert all(p.parent.joinpath("__init__.py").is_file() for p in FILES)


def test_files_hold_one_idea():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_folders_hold_one_kind():
    folders = {p.parent for p in FILES if p.parent.name != "methods"}
    assert not {str(f): n for f in folders if (n := sum(p.name != "__init__.py" for p in f.glob("*.py"))) > MOST_FILES}
