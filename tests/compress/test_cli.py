"""The command line, on the smallest runs that go through everything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kerf import files
from kerf.compress import cli
from kerf.compress.command.args import Args, build_parser, config_flags, parse
from kerf.compress.models import create
from kerf.compress.training import checkpoint
from tests.helpers.run_files import killed_after, read, rows

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--data_set=synthetic", "--arch=resnet20", "--subset=32", "--train_batch_size=8", "--N=4", "--device=cpu"]
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


def wrong(tmp_path):
    other, broken = tmp_path / "other.pt", tmp_path / "nan.pt"
    torch.save(create("resnet56", 10, 32).state_dict(), other)
    state = create("resnet20", 10, 32).state_dict()
    state["linear.weight"][0, 0] = float("nan")
    torch.save(state, broken)
    (tmp_path / "config.json").write_text('{"lr": "fast"}')
    (tmp_path / "text.pt").write_text("no weights")
    return {
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
        "another architecture": [f"--pretrained_model={other}"],
        "linear.weight has NaN": [f"--pretrained_model={broken}"],
        "cannot be read as a state dict": [f"--pretrained_model={tmp_path / 'text.pt'}"],
        "no run to resume at nowhere": ["--resume=nowhere"],
        "no file absent.json": ["--config=absent.json"],
        "invalid float value: 'fast'": [f"--config={tmp_path / 'config.json'}"],
        "unrecognized arguments: --rearange": ["--rearange"],
        "no folder /nonexistent": ["--data_set=cifar10", "--data_path=/nonexistent"],
        "needs --data_path": ["--data_set=cifar100"],
        "alexnet": ["--arch=alexnet"],
        "--use_dali": ["--use_dali"],
        "no device cuda:99": ["--device=cuda:99"],
        "a process takes one GPU": ["--gpus", "0", "1"],
        "leave --image_size out": ["--data_set=digits", "--image_size=64"],
    }


def test_wrong_input_is_one_line_and_exit_2_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for message, flags in wrong(tmp_path).items():
        assert cli.main([*SMALL, "--job_dir=out", *flags]) == 2, flags
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert message in error
        assert not (tmp_path / "out").exists()


def test_the_seed_readme_commands_parse():
    """Both commands of the 1xN README, and the spellings of its parser."""
    common = "--gpus 0 --arch mobilenet_v1 --data_path D --eval_batch_size 256 "
    train = "--job_dir ./experiment/ --pretrained_model P --pr_target 0.5 --N 4 --conv_type BlockL1Conv --rearrange"
    args, _ = parse((common + train).split())
    assert (args.N, args.rearrange, args.data_set, args.num_epochs, args.lr) == (4, True, "imagenet", 180, 0.01)
    assert parse((common + "--conv_type DenseConv --evaluate P").split())[0].pruned_model == "P"
    readme = "--pretrain_model P --lr_type step --lr_decay_freq 20 --lr_decay_step 50 100 --label-smoothing 0.1 --full"
    args, _ = parse(readme.split())
    assert (args.pretrained_model, args.lr_policy, args.lr_adjust, args.lr_decay_step) == ("P", "step", 20, (50, 100))
    parser = "--lr_policy exp --lr_gamma 0.2 --warmup_length 2 --nesterov --optimizer sgd --init kaiming_normal"
    args, notes = parse(parser.split())
    assert (args.lr_policy, args.lr_gamma, args.warmup_length, args.nesterov) == ("exp", 0.2, 2, True)
    assert "--init is accepted, since 1xN's scripts pass it, and changes nothing" in notes


def test_without_data_path_the_digits_are_used_and_said():
    args, notes = parse(["--conv_type", "BlockL1Conv", "--N", "4", "--rearrange"])
    assert args.data_set == "digits"
    assert args.num_epochs < 20
    assert [note for note in notes if "no --data_path" in note and "digits" in note]


def test_config_gives_defaults_that_flags_override(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(
        json.dumps({"N": 8, "rearrange": True, "lr_decay_step": [3, 4], "label_smoothing": 0.1, "gpus": [0]})
    )
    args, _ = parse([f"--config={path}", "--N=2"])
    assert (args.N, args.rearrange, args.lr_decay_step, args.label_smoothing) == (2, True, (3, 4), 0.1)
    assert parse([f"--config={path}", "--no-rearrange"])[0].rearrange is False


def test_a_saved_config_is_the_run(tmp_path):
    args, _ = parse(["--N=2", "--full", "--lr_decay_step", "1", "2", f"--job_dir={tmp_path}", "--nesterov"])
    files.write_json(tmp_path / "config.json", args.as_json())
    assert parse([f"--config={tmp_path / 'config.json'}"])[0] == args


def test_every_flag_has_a_field():
    fields = set(Args.__dataclass_fields__)
    given = {action.dest for action in build_parser()._actions if not action.dest.startswith("ignored_")}
    assert given - {"help", "config"} == fields
    assert config_flags.__doc__


@pytest.mark.parametrize("start", ["repository", "elsewhere"])
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
