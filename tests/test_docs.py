"""Every command of the tutorial, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)


def test_the_tutorial_has_its_steps():
    text = "".join(block for _, block in BLOCKS)
    for word in (
        "imagenet.py",
        "kerf-prune sensitivity",
        "--speedup_target",
        "inspect",
        "model_tune.py",
        "runtime.load",
    ):
        assert word in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_runs(tmp_path):
    pytest.importorskip("torch")
    for name in ("imagenet.py", "model_tune.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    binaries = Path(sys.executable).parent
    for language, block in BLOCKS:
        command = ["bash", "-ec", block] if language == "sh" else [sys.executable, "-c", block]
        environment = {"PATH": f"{binaries}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs/tutorial/half/model.kerf/report.html").is_file()


def test_the_reference_says_what_the_tables_say():
    pytest.importorskip("torch")
    from scripts.maintain import reference

    assert reference.FILE.read_text() == reference.text(), "run python scripts/maintain/reference.py"
