"""--quantise int8 from the command line: what is written and measured, and what is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from kerf.compress import cli
from kerf.compress.data.sets import Options, open_data
from kerf.compress.training import checkpoint
from kerf.deploy.frontend import qdq
from tests.helpers.image_files import write_folder
from tests.helpers.run_files import BRIEF, SMALL, read, rows

BLOCKS = ["--method=one_by_n", "--N=4", "--pr_target=0.5", "--num_epochs=1", "--quantise=int8", "--calibration=20"]


@pytest.mark.slow  # a run and an export
def test_a_pruned_network_ends_as_a_file_on_integers_which_is_what_is_measured(tmp_path):
    assert cli.main([*BRIEF, *BLOCKS, "--qat_epochs=1", f"--job_dir={tmp_path}"]) == 0
    summary = read(tmp_path / "summary.json")
    found = summary["quantised"]
    assert (found["images"], found["ranges"], found["qat_epochs"]) == (20, "mse", 1)
    assert {"top1_f32", "top5_f32"} < set(found)
    assert [row["phase"] for row in rows(tmp_path)] == ["dense", "fine-tune", "int8"]
    tensors, state = checkpoint.load(tmp_path / "checkpoint" / "best.safetensors")
    assert "quantised" not in state
    model, f32 = onnx.load(tmp_path / "model.onnx"), onnx.load(tmp_path / "model.f32.onnx")
    assert qdq.is_quantised(model)
    assert not qdq.is_quantised(f32)
    integers = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {t.name: numpy_helper.to_array(t) for t in f32.graph.initializer}
    weights = {name: weight for name, weight in weights.items() if weight.ndim == 4}
    assert len(weights) == 19
    assert sum((w == 0).sum() for w in weights.values()) >= 0.49 * sum(w.size for w in weights.values())
    for name, weight in weights.items():
        np.testing.assert_array_equal(integers[f"{name}_quantized"] == 0, weight == 0)
    assert len(tensors["layer1.0.conv1.weight"].flatten(1)[0].unique()) <= 255

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session, given = onnxruntime.InferenceSession(tmp_path / "model.onnx", options), read(tmp_path / "predictions.json")
    data = open_data("synthetic", Options(train_batch=8, subset=32)).test
    images = [image for x, _ in data.epoch(0, 0) for image in x.numpy()]
    answers = [int(session.run(None, {"input": image[None]})[0].argmax()) for image in images]
    assert np.mean([given[name] == answer for name, answer in zip(data.names, answers)]) > 0.95


WRONG = {
    "--qat_epochs trains on integers: give --quantise int8": ["--qat_epochs=1"],
    "--quantise: method drl quantises by itself": ["--method=drl", "--quantise=int8"],
    "--quantise: --latency_target_ms is a time of f32 kernels": ["--latency_target_ms=1", "--quantise=int8"],
    "--pruned_model evaluates, --qat_epochs trains": ["--evaluate=w.pth", "--quantise=int8", "--qat_epochs=1"],
    "--quantise": ["--quantise=int4"],
}


@pytest.mark.quick
@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_refused_before_anything_is_written(message, tmp_path, capsys):
    assert cli.main([*SMALL, f"--job_dir={tmp_path / 'out'}", *WRONG[message]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_data_without_training_images_are_refused(tmp_path, capsys):
    write_folder(tmp_path, "val", size=32)
    flags = ["--data_set=imagenet", f"--data_path={tmp_path}", "--image_size=32", "--arch=resnet20", "--method=l1"]
    flags += ["--num_epochs=0", "--quantise=int8", f"--job_dir={tmp_path / 'out'}", "--device=cpu"]
    assert cli.main(flags) == 2
    assert "--quantise takes ranges from images of the train folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
