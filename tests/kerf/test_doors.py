"""What `import kerf` gives, and what it does not load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kerf

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.quick
def test_every_door_opens():
    pytest.importorskip("torch")
    assert all(getattr(kerf, name) is not None for name in kerf.__all__)
    assert set(kerf.__all__) <= set(dir(kerf))
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        kerf.prun  # noqa: B018


@pytest.mark.quick
def test_importing_loads_no_stage():
    heavy = ("torch", "tvm", "onnx", "onnxruntime", "numpy")
    assert python(f"import kerf, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_the_deployment_side_needs_no_torch():
    python("import sys; sys.modules['torch'] = None; import kerf; kerf.load, kerf.inspect, kerf.compile, kerf.Bundle")


def test_onnx_runtime_leaves_nothing_and_tells_nobody(tmp_path):
    """Its telemetry, on by default from 1.29, leaves a file in TMPDIR, and sends what it is given to run."""
    code = """
import os, sys, tempfile
tempfile.tempdir = os.environ["TMPDIR"] = sys.argv[1]
import kerf.deploy.measure.verify as verify
from tests.helpers.onnx_networks import mobile
from pathlib import Path
verify.reference_session(str(mobile(Path(sys.argv[2]) / "m.onnx")))
print(os.listdir(sys.argv[1]))
"""
    (tmp_path / "tmp").mkdir()
    words = [sys.executable, "-c", code, str(tmp_path / "tmp"), str(tmp_path)]
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.quick
def test_without_torch_a_door_of_training_says_what_to_install():
    said = python(
        "import sys; sys.modules['torch'] = None; import kerf\n"
        "try:\n    kerf.prune\nexcept ImportError as error:\n    print(error)"
    )
    assert said == "kerf.prune needs torch: pip install 'kerf[train]'\n"


def test_loading_a_bundle_needs_no_compiler():
    assert python("import kerf, sys; kerf.load; print('tvm' in sys.modules)").strip() == "False"


@pytest.mark.quick
def test_errors_have_one_base():
    for error in (kerf.BadInput, kerf.Unsupported, kerf.DeviceLost, kerf.Mismatch):
        assert issubclass(error, kerf.KerfError)
    assert issubclass(kerf.BadInput, ValueError)


@pytest.mark.quick
def test_bare_names_are_the_same_modules():
    """Programs in a checkout imported `compress`, `deploy`, `kernels` and `tune`."""
    python(
        "import deploy, kerf.deploy, kerf.deploy.runtime.bundle as new\n"
        "import deploy.runtime.bundle as old\n"
        "from deploy.runtime.bundle import BundleError\n"
        "from kernels.problem import Problem\n"
        "import kerf.kernels.problem\n"
        "assert old is new and BundleError is new.BundleError and deploy is kerf.deploy\n"
        "assert Problem is kerf.kernels.problem.Problem"
    )
