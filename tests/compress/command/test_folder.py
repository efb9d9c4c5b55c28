"""--job_dir where nothing can be written: one line, before any data are read."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerf import files
from kerf.compress import cli
from kerf.compress.command import job
from kerf.compress.command.folder import best, config_of, last, open_job_dir, written
from kerf.compress.command.parsing import parse
from kerf.compress.training import checkpoint
from kerf.compress.training.progress import Reporter
from tests.helpers.run_files import killed_after

SMALL = ["--data_set=synthetic", "--arch=resnet20", "--subset=32", "--train_batch_size=8", "--N=4", "--device=cpu"]
NOBODY = 65534


@pytest.fixture
def unread(monkeypatch):
    """Fails the test when images are opened: by then a folder has to have been refused."""
    monkeypatch.setattr(job, "open_data", lambda *_: pytest.fail("data were opened first"))


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="kerf-shared-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Within, permissions hold: for root they do not, so it becomes nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def forbid(folder: Path) -> None:
    """Forbids writing in it, and makes sure that this is so."""
    folder.chmod(0o555)
    with as_a_user(), pytest.raises(PermissionError):
        (folder / "x").touch()


def refused(flags: list[str], capsys) -> str:
    with as_a_user():
        assert cli.main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("error: --job_dir ")
    assert error.endswith("; give another folder\n")
    return error


@pytest.mark.parametrize("command", [[], ["sensitivity"]], ids=["prune", "sensitivity"])
@pytest.mark.parametrize("below", ["", "job", "a/b"])
def test_a_read_only_folder_is_refused(command, below, shared, unread, capsys):
    forbid(shared)
    error = refused([*command, *SMALL, f"--job_dir={shared / below}"], capsys)
    assert f"nothing can be written in {shared} (Permission denied)" in error
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("below", ["", "job", "a/b"])
def test_a_file_is_no_folder(below, tmp_path, unread, capsys):
    (tmp_path / "file").write_text("of somebody")
    assert cli.main([*SMALL, f"--job_dir={tmp_path / 'file' / below}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path / 'file'} is a file, expected a folder; give another folder" in error
    assert (tmp_path / "file").read_text() == "of somebody"


@pytest.mark.parametrize("name", ["checkpoint", "tensorboard"])
def test_a_read_only_folder_within_is_refused(name, shared, unread, capsys):
    """A new run has to replace it, and a resumed one to write there, an epoch from now."""
    (shared / name).mkdir()
    (shared / "config.json").write_text("{}")
    forbid(shared / name)
    shared.chmod(0o777)
    error = refused([*SMALL, f"--job_dir={shared}"], capsys)
    assert f"nothing can be written in {shared / name}" in error
    assert (shared / "config.json").exists()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    with killed_after(5):  # 4 steps an epoch
        assert cli.main([*SMALL, "--num_epochs=1", f"--job_dir={folder}"]) == 130
    return folder


def test_a_run_to_resume_in_a_read_only_folder_is_refused(stopped, shared, unread, capsys):
    shutil.copytree(stopped, shared, dirs_exist_ok=True)
    forbid(shared)
    assert f"nothing can be written in {shared} (Permission denied)" in refused([f"--resume={shared}"], capsys)


def test_curves_that_cannot_be_written_are_refused(stopped, tmp_path, unread, capsys):
    pytest.importorskip("tensorboard")
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tensorboard").write_text("a file")
    assert cli.main([f"--resume={tmp_path}", "--tensorboard"]) == 2
    assert f"{tmp_path / 'tensorboard'} is a file, expected a folder" in capsys.readouterr().err


def spoil(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        checkpoint.save(path, checkpoint.read_weights(path), {"arch": "resnet20"})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "no finished epoch to resume in"),
        ("cut", "is not a whole safetensors file"),
        ("other", "is no run of kerf's, so it cannot be resumed"),
    ],
)
def test_a_checkpoint_of_something_else_is_not_resumed(how, message, stopped, tmp_path, unread, capsys):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    spoil(last(tmp_path), how)
    assert cli.main([f"--resume={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("content", ["", "[]", '{"odd": 1}'])
def test_shares_that_a_resumed_run_cannot_read_are_refused(content, stopped, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    config = {**parse([f"--resume={stopped}"])[0].as_json(), "allocate": "sensitivity", "pretrained_model": "w.pt"}
    weights = tmp_path / "w.safetensors"
    checkpoint.save(weights, {n.removeprefix("model."): w for n, w in checkpoint.load(last(stopped))[0].items()
                              if n.startswith("model.")})  # fmt: skip
    files.write_json(config_of(tmp_path), {**config, "pretrained_model": str(weights)})
    (tmp_path / "allocation.json").write_text(content)
    assert cli.main([f"--resume={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "allocation.json does not hold what a run wrote there" in error


def test_a_new_run_replaces_what_a_run_wrote_and_nothing_else(tmp_path):
    for path in (best(tmp_path), tmp_path / "summary.json", tmp_path / "sensitivity-4.svg", tmp_path / "notes.txt"):
        files.write(path, "old")
    assert sorted(written(tmp_path)) == [str(tmp_path / n) for n in ("checkpoint", "sensitivity-4.svg", "summary.json")]
    args, _ = parse([f"--job_dir={tmp_path}"])
    assert open_job_dir(args, Reporter(quiet=True)) == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "notes.txt"}
    assert parse([f"--config={config_of(tmp_path)}"])[0] == args
