"""The whole chain on a small network and real images, through the two command lines, in well under a minute."""

import json
from pathlib import Path

import numpy as np
import pytest

import kerf.compress.cli
import kerf.tune.cli
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.report import inspect
from kerf.deploy.runtime import session as runtime
from kerf.tune import whole_network

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    flags = ["--data_set=digits", "--arch=resnet20", "--N=4", "--rearrange", "--export_onnx", "--subset=160"]
    assert (
        kerf.compress.cli.main([*flags, "--num_epochs=1", "--conv_type=BlockL1Conv", f"--job_dir={folder / 'job'}"])
        == 0
    )
    code = kerf.tune.cli.main(
        [
            f"--onnx_path={folder / 'job' / 'model.onnx'}",
            *("--bsr=4", "--sparsity=0.5", "--trials=4", "--seconds=0.5"),
            f"--records={folder / 'records.jsonl'}",
            f"--out={folder / 'bundle'}",
        ]
    )
    assert code == 0
    return folder


def test_exported_blocks_are_contiguous_and_as_many_as_asked(job):
    summary = json.loads((job / "job" / "summary.json").read_text())
    assert summary["rearranged"] is True
    assert summary["block_density"] == pytest.approx(0.5, abs=0.01)
    pruned = [d for d in inspect.densities(job / "job" / "model.onnx", 4) if d.zero_blocks]
    assert len(pruned) == 18  # every 3x3 convolution but the stem
    for layer in pruned:
        assert layer.block == pytest.approx(0.5, abs=1.01 / layer.blocks)
        assert layer.block == pytest.approx(layer.element, abs=1e-9)  # zeros are whole blocks and nothing else


def test_report_says_what_ran(job):
    report = json.loads((job / "bundle" / "report.json").read_text())
    assert report["verified"] is True
    assert 0 < report["max_abs_error"] < 1e-2
    assert {"kerf", "onnxruntime"} <= set(report["latency_ms"])
    kernels = {row["kernel"] for row in report["layers"]}
    assert "conv2d_nchw_bsr_direct" in kernels
    assert report["accuracy"]["top1"] >= 0
    for row in report["layers"]:
        assert (row["block"] == "4x1") == ("bsr" in row["kernel"])
    # four trials, some raced twice in the play-off; where one of them won, the whole networks raced as well
    tried = [r for r in RecordBook(job / "records.jsonl").records if r.kernel != whole_network.KERNEL]
    assert len({(r.problem, r.what) for r in tried}) == 4
    assert all(r.latency_us for r in tried)


def test_bundle_and_onnxruntime_agree_image_by_image(job):
    import onnxruntime
    from sklearn.datasets import load_digits

    images = np.repeat(np.kron(load_digits().images[:40], np.ones((4, 4)))[:, None] / 16, 3, axis=1).astype(np.float32)
    session = runtime.load(job / "bundle")
    truth = onnxruntime.InferenceSession(str(job / "job" / "model.onnx"))
    for x in images:
        y = session.run(x[None])
        assert y.argmax() == truth.run(None, {"input": x[None]})[0].argmax()


def test_a_second_run_measures_nothing_and_reuses_the_records(job, capsys):
    code = kerf.tune.cli.main(
        [
            f"--onnx_path={job / 'job' / 'model.onnx'}",
            *("--trials=4", "--tune_minutes=0.0001", "--seconds=0.2", "--against=onnxruntime"),
            f"--records={job / 'records.jsonl'}",
            f"--out={job / 'again'}",
        ]
    )
    assert code == 0
    assert "4 reused" in capsys.readouterr().out
