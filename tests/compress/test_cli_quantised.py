"""A quantised network from the command line: what is saved, evaluated, exported, shown and trained on."""

import numpy as np
import onnxruntime
import pytest

from kerf.compress import cli
from kerf.compress.data.sets import Options, open_data
from kerf.compress.models import create
from kerf.compress.training import checkpoint
from tests.helpers.attaching import quickly
from tests.helpers.run_files import BRIEF, read, rows

METHOD = ["--method=drl", "--flops_target=0.6", "--num_epochs=1", "--finetune_epochs=2", *quickly("drl")]


@pytest.mark.slow  # three runs and two exports; tests/deploy/frontend/test_qdq.py has the file
def test_a_quantised_network_is_saved_evaluated_exported_shown_and_trained_on(tmp_path, capsys):
    first = tmp_path / "first"
    assert cli.main([*BRIEF, *METHOD, "--export_onnx", f"--job_dir={first}"]) == 0
    assert "exported" in capsys.readouterr().out
    summary, weights = read(first / "summary.json"), first / "checkpoint" / "best.safetensors"
    assert 0.5 < summary["macs"] / summary["macs_dense"] <= 0.6
    assert 2 <= summary["mean_bits"] <= 0.15 * 32
    assert [row["phase"] for row in rows(first)] == ["dense", "information dropout", "quantised"]
    tensors, state = checkpoint.load(weights)
    assert set(summary["bits"]) == set(state["quantised"])
    for path, (bits, _, _) in state["quantised"].items():
        steps = tensors[f"{path}.weight"].flatten(1)
        assert max(len(row.unique()) for row in steps) <= 2**bits - 1

    second = tmp_path / "second"
    assert cli.main([*BRIEF, f"--evaluate={weights}", "--export_onnx", f"--job_dir={second}"]) == 0
    assert read(second / "predictions.json") == read(first / "predictions.json")
    assert read(second / "summary.json")["bits"] == summary["bits"]
    assert (second / "model.onnx").read_bytes() == (first / "model.onnx").read_bytes()
    data = open_data("synthetic", Options(train_batch=8, subset=32))
    session, predicted = onnxruntime.InferenceSession(first / "model.onnx"), []
    for x, _ in data.test.epoch():
        predicted += [int(session.run(None, {"input": image[None].numpy()})[0].argmax()) for image in x]
    given = read(first / "predictions.json")
    assert np.mean([given[name] == label for name, label in zip(data.test.names, predicted)]) > 0.95

    capsys.readouterr()
    assert cli.main(["show", str(weights)]) == 0
    assert f"quantised: weights of {summary['mean_bits']:.2f} bits on average" in capsys.readouterr().out
    third, flags = tmp_path / "third", ["--method=l1", "--num_epochs=1", f"--pretrained_model={weights}"]
    assert cli.main([*BRIEF, *flags, f"--job_dir={third}"]) == 0
    assert "is quantised: its weights are trained on in f32" in capsys.readouterr().out
    assert "quantised" not in checkpoint.load_state(third / "checkpoint" / "best.safetensors")


@pytest.mark.slow  # twenty seconds: a search of widths and an export
def test_pruning_alone_is_exported_as_f32(tmp_path):
    flags = [flag for flag in METHOD if not flag.startswith("size=")]
    assert cli.main([*BRIEF, *flags, "size=1", "--export_onnx", f"--job_dir={tmp_path}"]) == 0
    assert "bits" not in read(tmp_path / "summary.json")
    assert [row["phase"] for row in rows(tmp_path)] == ["dense", "information dropout", "fine-tune"]
    assert b"QuantizeLinear" not in (tmp_path / "model.onnx").read_bytes()


def test_a_header_that_says_something_else_is_refused(tmp_path, capsys):
    path = tmp_path / "odd.safetensors"
    tensors = create("resnet20", 10, 32).state_dict()
    for wrong in ({"conv1": [1, 0.1, 0]}, {"nowhere": [8, 0.1, 0]}):
        checkpoint.save(path, tensors, {"arch": "resnet20", "quantised": wrong})
        assert cli.main([*BRIEF, f"--evaluate={path}", f"--job_dir={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "odd.safetensors: in its header, quantised" in error
        assert not (tmp_path / "out").exists()


WRONG = {
    "size is 0.01: expected a share from 0.0625": ["--set", "size=0.01"],
    "reward is 'odd': expected one of macs, accuracy": ["--set", "reward=odd"],
    "0 episodes or images: expected at least 1": ["--set", "bit_episodes=0"],
    "method drl prunes by training, and 0 epochs": ["--finetune_epochs=0"],
    "method drl has its own schedule": ["--prune_steps=2"],
    "of the MACs cannot be reached": ["--flops_target=0.001"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_refused_before_anything_is_written(message, tmp_path, capsys):
    assert cli.main([*BRIEF, "--method=drl", f"--job_dir={tmp_path / 'out'}", *WRONG[message]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not (tmp_path / "out").exists()
