"""Valid files of each kind, made once in a process of its own: what mutators begin with."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.helpers import random_onnx
from tests.helpers.image_files import write_folder
from tests.helpers.onnx_networks import Builder, mobile

TRAINING = ["--data_set=synthetic", "--arch=resnet20", "--subset=16", "--train_batch_size=8", "--device=cpu"]
NETWORKS = 12
PIECES = (1, 3, 12, 12)  # of each input of that network


def make(root: Path, tuned: bool = True) -> None:
    """All of them in ``root``; ``tuned``: also those that take more than ten seconds."""
    from kerf import cli

    mobile(root / "mobile.onnx")
    tiny(root / "tiny.onnx")
    for seed in range(NETWORKS):
        onnx.save(random_onnx.network(seed), str(root / f"random{seed}.onnx"))
    np.save(root / "x.npy", np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    np.savez(root / "calibration.npz", input=np.zeros((4, 3, 32, 32), np.float32))
    np.savez(root / "tiny.npz", input=np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    compiled = ["--seconds=0.05", "--against=onnxruntime", "--engine=kerf", "--quiet"]
    records = [f"--trials={8 if tuned else 2}", f"--records={root / 'records.jsonl'}"]
    done = cli.main(["tune", f"--onnx_path={root / 'mobile.onnx'}", *records, *compiled])
    assert done == 0
    pieces(root / "pieces.onnx")
    random = np.random.default_rng(0)
    np.savez(root / "pieces.npz", **{name: random.standard_normal(PIECES).astype(np.float32) for name in ("x", "z")})
    done = cli.main(["tune", f"--onnx_path={root / 'pieces.onnx'}", "--trials=0", *compiled])
    assert done == 0
    done = cli.main(["quantise", str(root / "tiny.onnx"), f"--calibration={root / 'tiny.npz'}",
                     f"--out={root / 'integers.onnx'}", "--quiet"])  # fmt: skip
    assert done == 0
    for words in (["keys", str(root / "own.key")], ["sign", str(root / "mobile.kerf"), f"--key={root / 'own.key'}"]):
        done = cli.main(["bundle", *words])
        assert done == 0
    (root / "mobile.kerf" / "manifest.sig").rename(root / "manifest.sig")
    _cifar(root / "cifar")
    (root / "images").mkdir()
    for split in ("train", "val"):
        write_folder(root / "images", split, classes=2, images=2, size=40)
    if tuned:
        made = cli.main(["prune", *TRAINING, "--method=l1", "--pr_target=0.5", "--num_epochs=1", "--finetune_epochs=1",
                         f"--job_dir={root / 'run'}", "--quiet"])  # fmt: skip
        assert made == 0
        built = root / "compare" / "run" / "model.kerf"
        built.mkdir(parents=True)
        shutil.copy(root / "mobile.kerf" / "report.json", built)
        shutil.copy(root / "run" / "summary.json", built.parent)
        import torch
        from safetensors.torch import load_file

        weights = load_file(root / "run" / "checkpoint" / "best.safetensors")
        torch.save({k: v[:2].clone() for k, v in list(weights.items())[:6] if v.ndim}, root / "small.pth")


def tiny(path: Path) -> Path:
    """A convolution and a dense layer: compiled in two seconds."""
    b = Builder()
    x = b.node("Relu", [b.conv("input", "first", 8, 3, 3, strides=[2, 2])], "relu")
    x = b.conv(x, "second", 8, 8, zero_blocks=0.5)
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    w = b.constant("w", b.rng.standard_normal((4, 8)))
    x = b.node("Gemm", [x, w, b.constant("b", np.zeros(4))], "last", transB=1)
    return b.save(path, x, shape=(1, 3, 8, 8), out_shape=(1, 4))


def pieces(path: Path) -> Path:
    """Two inputs, two outputs, and between kerf's layers nodes that ONNX Runtime runs: a bundle of several pieces."""
    b = Builder()
    first = b.node("Relu", [b.conv("x", "first", 8, 3, 3)], "relu")
    other = b.node("Neg", [b.conv("z", "beside", 8, 3)], "negative")
    joined = b.node("Add", [first, other], "joined")
    last = b.conv(b.node("Sin", [joined], "sine"), "last", 8, 8, zero_blocks=0.5)
    made = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (last, joined)}
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, PIECES) for name in ("x", "z")]
    graph = helper.make_graph(b.nodes, "pieces", given, list(made.values()), b.constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def _cifar(folder: Path) -> None:
    """Ten images a file."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {
            b"data": random.integers(0, 256, (10, 3072), dtype=np.uint8),
            b"labels": [int(v) for v in random.integers(0, 10, 10)],
            b"filenames": [f"{i}.png".encode() for i in range(10)],
        }
        (batches / name).write_bytes(pickle.dumps(content, protocol=2))


def safetensors(path: Path) -> tuple[dict, bytes]:
    """Header and data."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(text).to_bytes(8, "little") + text + data
