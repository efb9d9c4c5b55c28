"""Channel pruning from the command line: what a run writes, killed runs, chains of prunings, refusals."""

import pytest
import torch

from kerf.compress import cli
from kerf.compress.command.parsing import parse
from kerf.compress.command.planning import own_numbers
from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.training import checkpoint
from tests.helpers.attaching import quickly
from tests.helpers.run_files import BRIEF, killed_after, read, rows
from tests.helpers.sweeps import sweep

RESUMED = ("resrep", "csgd", "rni", "dmcp", "greg2", "gate_decorator", "dsc2", "while_training")
RESUMED += ("prunenet", "play_and_prune", "frs", "snapshots", "drl")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Folder of a run that kept six tenths of the MACs."""
    folder = tmp_path_factory.mktemp("narrow") / "first"
    flags = ["--method=l1", "--flops_target=0.6", "--num_epochs=1", "--export_onnx", f"--job_dir={folder}"]
    assert cli.main([*BRIEF, *flags]) == 0
    return folder


def test_a_narrow_network_is_saved_evaluated_and_shown(narrow, tmp_path, capsys):
    summary = read(narrow / "summary.json")
    assert 0.53 < summary["macs"] / summary["macs_dense"] <= 0.6
    assert summary["params"] < 0.7 * summary["params_dense"]
    assert summary["flops_target"] == pytest.approx(0.6)
    assert summary["pr_target"] is None
    assert all(after < before for before, after in summary["widths"].values())
    assert (narrow / "model.onnx").is_file()

    weights = narrow / "checkpoint" / "best.safetensors"
    assert cli.main([*BRIEF, f"--evaluate={weights}", f"--job_dir={tmp_path / 'evaluated'}"]) == 0
    assert read(tmp_path / "evaluated" / "predictions.json") == read(narrow / "predictions.json")
    capsys.readouterr()
    assert cli.main(["show", str(weights)]) == 0
    assert "layer1.0.conv1.weight" in capsys.readouterr().out


@pytest.mark.slow  # two more runs
def test_a_narrow_network_is_pruned_again_by_channels_then_by_blocks(narrow, tmp_path):
    """Each step starts from the file of the one before."""
    weights = narrow / "checkpoint" / "best.safetensors"
    second, third = tmp_path / "second", tmp_path / "third"
    flags = ["--method=ucs", "--flops_target=0.8", "--num_epochs=1", f"--pretrained_model={weights}"]
    assert cli.main([*BRIEF, *flags, f"--job_dir={second}"]) == 0
    again = second / "checkpoint" / "best.safetensors"
    kept = [checkpoint.kept_channels(path, "resnet20") for path in (weights, again)]
    for name, index in kept[1].items():  # indices of the dense network's channels, not of the first narrow one's
        assert set(index.tolist()) <= set(kept[0][name].tolist()), name
    flags = [
        "--method=one_by_n",
        "--rearrange",
        "--N=4",
        "--num_epochs=1",
        f"--pretrained_model={again}",
        "--export_onnx",
    ]
    assert cli.main([*BRIEF, *flags, f"--job_dir={third}"]) == 0
    summary = read(third / "summary.json")
    assert summary["macs_dense"] == read(second / "summary.json")["macs"]
    assert summary["macs"] < 0.6 * summary["macs_dense"]
    assert (
        cli.main([*BRIEF, f"--evaluate={third / 'checkpoint/best.safetensors'}", f"--job_dir={tmp_path / 'e3'}"]) == 0
    )


@pytest.mark.slow  # three runs each; tests/compress/methods/test_channel_methods.py resumes without the command
@pytest.mark.parametrize("method", RESUMED)
def test_a_killed_run_resumes_to_the_same_masks_and_losses(method, tmp_path):
    """Killed within an epoch: under pressure, and after the channels are gone where a method trains on."""
    flags = [*BRIEF, f"--method={method}", "--flops_target=0.6", "--finetune_epochs=4", "--num_epochs=1"]
    flags += quickly(method)
    assert cli.main([*flags, f"--job_dir={tmp_path / 'whole'}"]) == 0
    for steps in (6, 14):  # 4 steps an epoch
        folder = tmp_path / f"stopped{steps}"
        with killed_after(steps):
            assert cli.main([*flags, f"--job_dir={folder}"]) == 130
        assert cli.main([f"--resume={folder}"]) == 0
        assert rows(folder) == rows(tmp_path / "whole")
        assert read(folder / "summary.json")["widths"] == read(tmp_path / "whole" / "summary.json")["widths"]
        ends = [checkpoint.load(f / "checkpoint" / "best.safetensors") for f in (folder, tmp_path / "whole")]
        assert ends[0][1] == ends[1][1]
        assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[1][0])


WRONG = {
    "--flops_target is 1.0": ["--method=l1", "--flops_target=1"],
    "--flops_target is 0.0": ["--method=l1", "--flops_target=0"],
    "give one": ["--method=l1", "--flops_target=0.5", "--pr_target=0.5"],
    "of the MACs cannot be reached": ["--method=resrep", "--flops_target=0.01"],
    "resrep removes MACs": ["--method=resrep", "--pr_target=0.5"],
    "dmcp searches for a number of MACs": ["--method=dmcp", "--pr_target=0.5"],
    "DenseNet40 has nothing that this method prunes": ["--arch=densenet40", "--method=resrep"],
    "method one_by_n removes a share of each layer": ["--method=one_by_n", "--flops_target=0.5"],
    "method weight cuts no channels: leave --round_to out": ["--method=weight", "--round_to=8"],
    "--skip transition* is the name of no layer": ["--method=l1", "--skip", "transition*"],
    "it has lasso, compactor_momentum": ["--method=resrep", "--set", "laso=1"],
    "is not a number": ["--method=resrep", "--set", "lasso=much"],
    "expected a finite number": ["--method=resrep", "--set", "lasso=nan"],
    "method csgd prunes by training, and 0 epochs": ["--method=csgd", "--finetune_epochs=0"],
    "method csgd has its own schedule": ["--method=csgd", "--prune_steps=2"],
    "it has none": ["--method=l1", "--set", "lasso=1"],
    "clusters is 'odd': expected one of kmeans": ["--method=csgd", "--set", "clusters=odd"],
    "--distill learns from the trained dense network": ["--method=l1", "--distill=0.5"],
    "--distill_features learns from the trained dense network": ["--method=l1", "--distill_features=0.5"],
    "is a resnet56: give --arch resnet56": ["--method=l1", "--pretrained_model={other}"],
}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "resnet56.safetensors"
    checkpoint.save(path, create("resnet56", 10, 32).state_dict(), {"arch": "resnet56", "kept": {}})
    return path


FEW = (  # one of each: targets, what a method takes, networks, numbers of a method's own, checkpoints
    "of the MACs cannot be reached",
    "resrep removes MACs",
    "DenseNet40 has nothing that this method prunes",
    "it has lasso, compactor_momentum",
    "is a resnet56: give --arch resnet56",
)


@pytest.mark.parametrize("message", sweep(WRONG, quick=FEW))
def test_wrong_use_is_refused_before_anything_is_written(message, other, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(other=other) for flag in WRONG[message]]
    assert cli.main([*BRIEF, "--job_dir=out", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["show"], ["show", "absent.safetensors"]])
def test_show_needs_a_checkpoint(argv):
    assert cli.main(argv) == 2


def test_channel_methods_keep_half_of_the_macs_unless_told(tmp_path):
    assert cli.main([*BRIEF, "--method=l1", "--num_epochs=1", f"--job_dir={tmp_path}"]) == 0
    summary = read(tmp_path / "summary.json")
    assert 0.43 < summary["macs"] / summary["macs_dense"] <= 0.5


@pytest.mark.slow  # 20 seconds; its widths alone are in tests/compress/models/test_published_widths.py
def test_densenet40_with_three_filters_per_layer(tmp_path):
    """The C-SGD authors' own run: every dense layer to 3 of 12 filters, stem and transitions as they are."""
    flags = ["--arch=densenet40", "--method=csgd", "--pr_target=0.75", "--skip", "conv", "transition*"]
    assert cli.main([*BRIEF, *flags, "--num_epochs=1", f"--job_dir={tmp_path}"]) == 0
    summary = read(tmp_path / "summary.json")
    assert set(map(tuple, summary["widths"].values())) == {(12, 3)}
    assert len(summary["widths"]) == 36
    assert summary["macs"] / summary["macs_dense"] == pytest.approx(1 - 0.787, abs=5e-4)


def test_numbers_of_a_methods_own():
    assert own_numbers(["lasso=1e-3", "granularity=8"], "resrep") == {"lasso": 1e-3, "granularity": 8}
    assert own_numbers(["clusters=even"], "csgd") == {"clusters": "even"}
    args, _ = parse(["--method=resrep", "--set", "lasso=1e-3", "granularity=8"])
    assert args.set == ("lasso=1e-3", "granularity=8")


WHOLE = ("while_training", "hessian", "hrank", "ezcrop", "uniform_scaling", "channel_similarity", "lookahead", "drl")


@pytest.mark.parametrize("method", sweep(WHOLE, quick=("while_training",)))
def test_a_whole_run(method, tmp_path):
    flags = [f"--method={method}", "--num_epochs=1", "--export_onnx", *quickly(method), f"--job_dir={tmp_path}"]
    assert cli.main([*BRIEF, *flags]) == 0
    summary = read(tmp_path / "summary.json")
    assert 0.3 < summary["macs"] / summary["macs_dense"] < 0.75
    assert (tmp_path / "model.onnx").is_file()


def test_methods_lists_the_table(capsys):
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in METHODS)


def test_distillation_recalibration_and_steps_from_the_command_line(tmp_path):
    weights = tmp_path / "dense.safetensors"
    checkpoint.save(weights, create("resnet20", 10, 32).state_dict())
    flags = ["--method=l1", "--flops_target=0.6", "--prune_steps=2", "--finetune_epochs=2", "--recalibrate=2"]
    flags += ["--distill=0.5", f"--pretrained_model={weights}", f"--job_dir={tmp_path / 'job'}", "--residual"]
    assert cli.main([*BRIEF, *flags]) == 0
    assert [row["phase"] for row in rows(tmp_path / "job")] == ["fine-tune, step 1 of 2", "fine-tune"]
    assert "conv1" in read(tmp_path / "job" / "summary.json")["widths"]  # the residual stream
