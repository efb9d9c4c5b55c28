import numpy as np
import pytest

import kerf.tune.cli
from kerf.deploy.cli import main
from tests.helpers.onnx_networks import mobile

pytestmark = pytest.mark.quick


def test_inspect_shows_zero_blocks(tmp_path, capsys):
    assert main(["inspect", str(mobile(tmp_path / "m.onnx")), "--bsr", "4"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if " expand " in line)
    assert row.count("50%") >= 3  # of elements, and of blocks of four and less
    assert "sparse, 1." in row
    assert "not in blocks" not in out
    assert main(["inspect", str(tmp_path / "m.onnx"), "--bsr", "16"]) == 0
    assert "most zeros are not in blocks of 16" in " ".join(capsys.readouterr().out.split())


def test_inspect_shows_what_computes_a_bundle(tmp_path, capsys):
    path = mobile(tmp_path / "m.onnx")
    assert kerf.tune.cli.main([f"--onnx_path={path}", "--trials=0", "--seconds=0.2", "--against=onnxruntime"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "m.kerf")]) == 0
    assert "conv2d_nchw_bsr_direct" in capsys.readouterr().out


def test_run_maps_array_to_array(tmp_path):
    path = mobile(tmp_path / "m.onnx")
    flags = ["--trials=0", "--seconds=0.2", "--against=onnxruntime"]
    assert kerf.tune.cli.main([f"--onnx_path={path}", *flags]) == 0
    np.save(tmp_path / "x.npy", np.ones((1, 3, 32, 32), np.float32))
    assert main(["run", str(tmp_path / "m.kerf"), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]) == 0
    assert np.load(tmp_path / "y.npy").shape == (1, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", "none.onnx"], "none.onnx"),
        (["inspect", "m.onnx", "--bsr", "0"], "block size is 0"),
        (["run", "none", "x.npy", "y.npy"], "x.npy"),
        (["fly"], "fly"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    mobile(tmp_path / "m.onnx")
    assert main(words, "kerf look") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("kerf look: error: ")
    assert said in line
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
