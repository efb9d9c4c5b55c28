"""The wheel, unpacked outside the checkout: what it puts into site-packages, and that the deployment side works there.

The dependencies are this environment's; torch is hidden, and the checkout is not on the path.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.onnx_networks import mobile

ROOT = Path(__file__).parents[2]
# What a program there sees: no checkout, no editable install of it, no torch.
ALONE = """
import sys
sys.path[:] = [SITE, *(p for p in sys.path if p and p != ROOT)]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.modules["torch"] = None
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # not the folder itself: setuptools leaves build/ and egg-info behind
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    packages = ("compress", "deploy", "kernels", "kerf", "tune")
    for name in filter(None, tracked.split("\0")):
        if (name.split("/")[0] in packages or "/" not in name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")  # pure: one for every system
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def alone(site: Path, code: str, cwd: Path) -> str:
    head = ALONE.replace("SITE", repr(str(site))).replace("ROOT", repr(str(ROOT)))
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_site_packages_gains_kerf_and_nothing_else(site):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"kerf"}
    assert (site / "kerf" / "py.typed").is_file()
    assert list((site / "kerf" / "deploy" / "pretuned").glob("*.jsonl"))
    assert (site / "kerf" / "deploy" / "report" / "report.html.j2").is_file()


def test_a_network_is_compiled_loaded_and_run(site, tmp_path):
    path = mobile(tmp_path / "model.onnx")
    said = alone(
        site,
        f"""
import json, numpy as np, kerf
assert kerf.__file__.startswith({str(site)!r}), kerf.__file__
bundle = kerf.compile({str(path)!r}, trials=0, seconds=0.2, against=["onnxruntime"])
session = kerf.load(bundle.path)
x = np.random.default_rng(0).standard_normal(session.input_shape).astype(np.float32)
np.save("x.npy", x)
np.save("y.npy", session.run(x))
print(json.dumps([m for m in sys.modules if m.split(".")[0] in ("compress", "deploy", "kernels", "tune")]))
""",
        tmp_path,
    )
    assert json.loads(said) == []
    import onnxruntime

    truth = onnxruntime.InferenceSession(str(path)).run(None, {"input": np.load(tmp_path / "x.npy")})[0]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_libkerf_is_built_from_what_is_installed(site, tmp_path):
    alone(site, "from kerf.cli import main; raise SystemExit(main(['export-runtime', 'runtime']))", tmp_path)
    assert (tmp_path / "runtime/include/kerf.h").read_bytes() == (ROOT / "deploy/runtime/c/include/kerf.h").read_bytes()
    done = subprocess.run([tmp_path / "runtime/bin/kerf-example", "none", "x"], capture_output=True, text=True)
    assert "no bundle" in done.stderr


def test_the_command_inspects(site, tmp_path):
    path = mobile(tmp_path / "model.onnx")
    said = alone(site, f"from kerf.cli import main; raise SystemExit(main(['inspect', {str(path)!r}]))", tmp_path)
    assert "conv" in said


def test_another_distribution_of_the_name_kernels_is_left_alone(site, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("MINE = True\n")
    alone(
        site,
        f"""
sys.path.insert(1, {str(tmp_path)!r})
import kernels, kerf, kerf.kernels.backends, kerf.tune.pipeline
assert kernels.MINE and kerf.kernels.backends.BACKENDS
""",
        tmp_path,
    )
