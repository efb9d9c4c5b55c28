"""An engine that ends its process ends one that was made for that."""

import signal
import subprocess

import numpy as np
import onnx
import pytest

from kerf.deploy.measure import bench, openvino_trial, rivals
from kerf.errors import Unsupported
from tests.helpers.onnx_networks import mobile


def test_a_file_that_runs(tmp_path):
    pytest.importorskip("openvino")
    openvino_trial.survived(mobile(tmp_path / "m.onnx", zero_blocks=0), 1)


def test_what_cannot_be_read_is_refused_in_a_line(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no network")
    with pytest.raises(Unsupported, match="OpenVINO") as refused:
        openvino_trial.survived(tmp_path / "m.onnx", 1)
    assert len(str(refused.value).splitlines()) == 1


def test_a_crash_is_said_and_only_integers_are_tried_first(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    path = mobile(tmp_path / "m.onnx", zero_blocks=0)
    died = subprocess.CompletedProcess([], -signal.SIGSEGV, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    starting = rivals.Starting({"openvino": bench.openvino_engine}, 1, 1e-3)
    reference = bench.Engine("kerf", lambda x: x)
    (integers,) = starting._rivals(path, " int8", reference, 1e-3)
    with pytest.raises(Unsupported, match=r"ends its process on m\.onnx"):
        integers.make()
    (floats,) = starting._rivals(path, "", reference, 1e-3)
    shape = [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert np.isfinite(floats.make().run(np.ones(shape, np.float32))).all()
