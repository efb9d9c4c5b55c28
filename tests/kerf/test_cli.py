"""The command kerf: which word does what, and how it fails."""

import os
import subprocess
import sys

import pytest

from kerf import cli

pytestmark = pytest.mark.quick


def test_every_word_has_its_help(capsys):
    pytest.importorskip("torch")
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as left:
            cli.main([name, "--help"])
        assert left.value.code == 0
        assert f"kerf {name}" in capsys.readouterr().out


def test_alone_it_says_what_there_is(capsys):
    assert cli.main([]) == 2
    alone = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    assert all(name in alone for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tun"], "kerf: error: no command 'tun'; did you mean tune?"),
        (["--quiet"], "kerf: error: no command '--quiet'; expected one of prune, "),
        (["inspect", "absent.onnx"], "kerf inspect: error: "),
        (["tune", "--onnx_path", "absent.onnx"], "kerf tune: error: "),
        (["records", "show", "--records", "absent.jsonl"], "kerf records: error: "),
        (["show", "absent.safetensors"], "kerf show: error: "),
        (["prune", "--N", "0"], "kerf prune: error: "),
        (["prune", "--N=--"], "kerf prune: error: --N=--: no value"),
        (["tune", "--onnx_path=--"], "kerf tune: error: --onnx_path=--: no value"),
    ],
)
def test_what_is_wrong_is_one_line(words, said, capsys, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "kerf", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kerf 0.")


def test_without_torch_the_training_stage_says_what_to_install():
    # in a process of its own: a second copy of kerf.compress here would stay in other tests' way
    code = "import sys; sys.modules['torch'] = None; from kerf import cli; sys.exit(cli.main(['methods']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'kerf[train]'" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_that_cannot_be_written_is_one_line(words):
    """Else Python says so when it leaves, with an exception that it ignores, and exit code 120."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kerf", *words], stdout=full, stderr=subprocess.PIPE, env=env, text=True, check=False
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the output cannot be written (No space left on device)" in done.stderr
