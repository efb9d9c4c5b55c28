"""The command line, on the smallest runs that go through everything."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kerf.compress import cli
from kerf.compress.models import create
from kerf.compress.training import checkpoint
from tests.helpers import run_files
from tests.helpers.run_files import killed_after, read, rows
from tests.helpers.sweeps import sweep

ROOT = Path(__file__).resolve().parents[2]
SMALL = [*run_files.SMALL, "--N=4"]
SUMMARY_KEYS = {
    "method", "arch", "data_set", "N", "pr_target", "rearranged", "top1_dense", "top1_pruned", "top1", "top5",
    "macs_dense", "macs", "params_dense", "params", "block_density", "element_density", "seconds",
}  # fmt: skip


def test_a_run_writes_what_it_promises(tmp_path, capsys):
    flags = ["--conv_type=BlockL1Conv", "--rearrange", "--num_epochs=1", "--export_onnx", f"--job_dir={tmp_path}"]
    assert cli.main([*SMALL, *flags]) == 0
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "config.json", "metrics.jsonl", "summary.json", "predictions.json", "model.onnx",
        "checkpoint/last.safetensors", "checkpoint/best.safetensors",
    }  # fmt: skip
    assert "training the dense network first" in capsys.readouterr().out
    summary = read(tmp_path / "summary.json")
    assert set(summary) >= SUMMARY_KEYS
    assert summary["rearranged"] is True
    assert summary["element_density"] == pytest.approx(0.5, abs=0.01)
    assert summary["block_density"] == pytest.approx(summary["element_density"], abs=1e-6)
    assert summary["macs"] < 0.6 * summary["macs_dense"]
    assert [row["phase"] for row in rows(tmp_path)] == ["dense", "fine-tune"]
    predictions = read(tmp_path / "predictions.json")
    assert len(predictions) == 32

    evaluated = tmp_path / "evaluated"
    weights = tmp_path / "checkpoint" / "best.safetensors"
    assert cli.main([*SMALL, f"--evaluate={weights}", "--conv_type=DenseConv", f"--job_dir={evaluated}"]) == 0
    again = read(evaluated / "summary.json")
    assert read(evaluated / "predictions.json") == predictions
    for key in ("top1", "top5", "macs", "params", "block_density"):
        assert again[key] == pytest.approx(summary[key]), key


def test_an_interrupted_run_resumes_to_the_same_end(tmp_path, capsys):
    """Killed in the second epoch after pruning, right after pruning, and in the second of the dense network."""
    flags = [*SMALL, "--rearrange", "--conv_type=BlockRandomConv", "--num_epochs=2"]
    assert cli.main([*flags, f"--job_dir={tmp_path / 'whole'}"]) == 0
    for steps in (14, 8, 6):  # 4 steps an epoch, 2 epochs a phase
        folder = tmp_path / f"stopped{steps}"
        with killed_after(steps):
            assert cli.main([*flags, f"--job_dir={folder}"]) == 130
        assert "--resume" in capsys.readouterr().err
        assert not (folder / "summary.json").exists()
        assert cli.main([f"--resume={folder}"]) == 0
        assert rows(folder) == rows(tmp_path / "whole")
        assert read(folder / "predictions.json") == read(tmp_path / "whole" / "predictions.json")
        ends = [checkpoint.read_weights(f / "checkpoint" / "best.safetensors") for f in (folder, tmp_path / "whole")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_a_resumed_run_keeps_its_settings(tmp_path, capsys):
    assert cli.main([*SMALL, "--num_epochs=1", f"--job_dir={tmp_path}"]) == 0
    capsys.readouterr()
    assert cli.main([f"--resume={tmp_path}", "--N=8"]) == 2
    assert "resuming keeps its settings" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["best", "model"])
def test_a_run_that_lacks_a_tensor_is_refused_before_it_trains(tmp_path, capsys, part):
    with killed_after(6):
        assert cli.main([*SMALL, "--num_epochs=2", f"--job_dir={tmp_path}"]) == 130
    last = tmp_path / "checkpoint" / "last.safetensors"
    tensors, state = checkpoint.load(last)
    del tensors[min(name for name in tensors if name.startswith(f"{part}."))]
    checkpoint.save(last, tensors, state)
    capsys.readouterr()
    assert cli.main([f"--resume={tmp_path}"]) == 2
    assert "is no run of this network and these settings" in capsys.readouterr().err


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Files that cannot be used, by the name under which WRONG has them."""
    folder = tmp_path_factory.mktemp("given")
    torch.save(create("resnet56", 10, 32).state_dict(), folder / "other.pt")
    state = create("resnet20", 10, 32).state_dict()
    state["linear.weight"][0, 0] = float("nan")
    torch.save(state, folder / "nan.pt")
    (folder / "text.pt").write_text("no weights")
    (folder / "config.json").write_text('{"lr": "fast"}')
    return folder


WRONG = {
    "unknown --conv_type BlockL2Conv: expected one of BlockL1Conv": ["--conv_type=BlockL2Conv"],
    "unknown --method magic: expected one of": ["--method=magic"],
    "give one": ["--method=weight", "--conv_type=DenseConv"],
    "--N is 0: expected 1 or more": ["--N=0"],
    "--N is -4: expected 1 or more": ["--N=-4"],
    "--pr_target is 1.0: expected less than 1": ["--pr_target=1"],
    "--pr_target is nan": ["--pr_target=nan"],
    "--lr is -1.0": ["--lr=-1"],
    "no weights at absent.pth": ["--pretrained_model=absent.pth"],
    "no weights at gone.pth": ["--evaluate=gone.pth"],
    "another architecture": ["--pretrained_model={given}/other.pt"],
    "linear.weight has NaN": ["--pretrained_model={given}/nan.pt"],
    "cannot be read as a state dict": ["--pretrained_model={given}/text.pt"],
    "no run to resume at nowhere": ["--resume=nowhere"],
    "absent.json: no such file; expected flag names": ["--config=absent.json"],
    'config.json: lr is "fast", expected a number': ["--config={given}/config.json"],
    "unrecognized arguments: --rearange": ["--rearange"],
    "no folder /nonexistent": ["--data_set=imagenet", "--data_path=/nonexistent"],
    "needs --data_path": ["--data_set=cifar100"],
    "alexnet": ["--arch=alexnet"],
    "--use_dali": ["--use_dali"],
    "no device cuda:99": ["--device=cuda:99"],
    "no device meta": ["--device=meta"],
    "--seed is 4294967296: expected at most 4294967295": ["--seed=4294967296"],
    "--gpus is -10000000000000000000: expected a number of at most 18 digits": ["--gpus=-10000000000000000000"],
    "--lr_adjust is 10000000000000000000: expected a number": ["--lr_adjust=10000000000000000000"],
    "a process takes one GPU": ["--gpus", "0", "1"],
    "leave --image_size out": ["--data_set=digits", "--image_size=64"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_one_line_and_exit_2_before_anything_is_written(message, given, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(given=given) for flag in WRONG[message]]
    assert cli.main([*SMALL, "--job_dir=out", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "flags", "said"),
    [
        ("kerf prune", ["--N=0"], "kerf prune: error: --N is 0: expected 1 or more"),
        ("kerf sensitivity", ["sensitivity", "--N=0"], "kerf sensitivity: error: --N is 0: expected 1 or more"),
        ("kerf methods", ["methods", "odd"], "kerf methods: error: no method odd: expected one of"),
        ("kerf show", ["show", "odd"], "kerf show: error: no weights at odd"),
        ("kerf-prune", ["sensitivity", "--N=0"], "error: --N is 0: expected 1 or more"),
        ("imagenet.py", ["--N=0"], "error: --N is 0: expected 1 or more"),
    ],
)
def test_errors_begin_with_the_name_that_was_typed(program, flags, said, capsys):
    assert cli.main(flags, program=program) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("program", "flags", "usage"),
    [
        ("kerf prune", [], "kerf prune [--FLAG"),
        ("kerf sensitivity", ["sensitivity"], "kerf sensitivity [--FLAG"),
        ("kerf-prune", ["sensitivity"], "kerf-prune sensitivity [--FLAG"),
        ("kerf show", ["show"], "kerf show [-h]"),
        ("kerf-prune", ["methods"], "kerf-prune methods [-h]"),
        ("imagenet.py", [], "imagenet.py [--FLAG"),
    ],
)
def test_usage_has_the_name_that_was_typed(program, flags, usage, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([*flags, "--help"], program=program)
    assert capsys.readouterr().out.startswith(f"usage: {usage}")


def test_an_interrupted_run_says_how_to_go_on_under_its_name(tmp_path, capsys):
    flags = [*SMALL, "--num_epochs=1", f"--job_dir={tmp_path}"]
    with killed_after(5):  # 4 steps an epoch
        assert cli.main(flags, program="kerf prune") == 130
    assert capsys.readouterr().err == f"kerf prune: interrupted; continue with --resume {tmp_path}\n"


@pytest.mark.parametrize("start", sweep(("repository", "elsewhere"), quick=("elsewhere",)))
def test_the_root_script_starts(tmp_path, start):
    folder = ROOT if start == "repository" else tmp_path
    done = subprocess.run([sys.executable, ROOT / "imagenet.py", "--N=0"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --N is 0: expected 1 or more\n"


def test_tensorboard_gets_a_point_per_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [
        "--data_set=synthetic",
        "--arch=resnet20",
        "--subset=32",
        "--train_batch_size=8",
        "--num_epochs=2",
        "--N=4",
    ]
    assert cli.main([*flags, "--finetune_epochs=1", "--tensorboard", f"--job_dir={tmp_path}"]) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("validation/val_top1")] == [0, 1, 2]
    assert "weights/conv1.weight" in events.Tags()["histograms"]
