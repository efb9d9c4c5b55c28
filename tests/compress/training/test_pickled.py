"""Files of torch.save: what lies beside weights loads, nothing in a file runs, refusals are one line."""

import argparse
import datetime
import pathlib
import pickle
import types
import uuid
import zipfile
from collections import Counter, OrderedDict
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch import nn
from torch.serialization import get_safe_globals, safe_globals

from kerf.compress.training import checkpoint, pickled
from kerf.compress.training.pickled import printable

pytestmark = pytest.mark.quick


class Config:
    lr = 0.1


class Attack:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, arch="resnet20", out=pathlib.Path("runs"), betas=(0.9, 0.999)),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "numpy numbers": [np.float64(71.2), np.float32(1), np.int64(3), np.bool_(True), np.str_("x"), np.uint8(1)],
    "numpy arrays": {"history": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "b"])},
    "numpy dtype": np.dtype("int32"),
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("c"), pathlib.PureWindowsPath("d:/e")],
    "dates": [datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc), datetime.timedelta(days=1)],
    "identity": [uuid.UUID(int=5), Decimal("0.1"), torch.__version__],
    "collections": [OrderedDict(a=1), Counter("ab"), {1, 2}, (torch.device("cpu"), torch.float16, torch.Size([2]))],
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_what_people_keep_beside_their_weights_loads(kind, zipped, tmp_path):
    file, weight = tmp_path / "w.pth", torch.rand(3)
    torch.save({"model": {"w": weight}, "args": BESIDE[kind]}, file, _use_new_zipfile_serialization=zipped)
    assert torch.equal(checkpoint.read_weights(file)["w"], weight)
    again = pickled.read(file)["args"]
    if kind not in ("paths", "namespace", "numpy arrays"):
        assert again == BESIDE[kind]


def test_numpy_of_before_version_2_loads(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "best": np.float64(1.5)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core", b"numpy.core"))
    assert pickled.read(tmp_path / "old.pth")["best"] == 1.5


def test_what_the_caller_allows_stays_allowed_and_nothing_more(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    before, mine = set(get_safe_globals()), pickled.ALLOWED[0]
    with safe_globals([mine]):
        pickled.read(tmp_path / "w.pth")
        assert set(get_safe_globals()) == {*before, mine}
    pickled.read(tmp_path / "w.pth")
    assert set(get_safe_globals()) == before


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


def cut(path, at):
    torch.save({"w": torch.rand(5000)}, path)
    path.write_bytes(path.read_bytes()[:at])


def archive(path, name):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, "hello")


def encrypted(path):
    """By one bit of the heads of every file in the archive."""
    torch.save({"w": torch.rand(5)}, path)
    data = bytearray(path.read_bytes())
    for head, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(head)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(head, at + 1)
    path.write_bytes(data)


REFUSED = {
    "settings of a class": (lambda p: torch.save({"model": {"w": torch.ones(1)}, "c": Config()}, p), r"\.Config,.*"),
    "two classes": (lambda p: torch.save({"a": Config(), "b": Attack()}, p), r"\.Config and 1 more class,.*"),
    "an attack": (lambda p: torch.save({"w": Attack()}, p), r"builtins\.print,.*torch\.save\(model\.state_dict\(\)"),
    "an attack, before 1.6": (
        lambda p: torch.save({"w": Attack()}, p, _use_new_zipfile_serialization=False),
        r"print, .*torch\.save\(model\.state_dict\(\)",
    ),
    "a whole module": (lambda p: torch.save(Net(), p), r"whole module, .*\.Net, .*torch\.save\(model\.state_dict\(\)"),
    "a module beside": (lambda p: torch.save({"model": Net(), "ema": None}, p), r"whole module, .*\.Net, "),
    "TorchScript": (lambda p: torch.jit.script(Net()).save(str(p)), "is a TorchScript archive; .*torch.jit.load"),
    "a zip of something": (lambda p: archive(p, "a/readme.txt"), "torch.save did not write, with a/readme.txt"),
    "an empty zip": (lambda p: zipfile.ZipFile(p, "w").close(), "torch.save did not write, with no file"),
    "cut short": (lambda p: cut(p, 9000), "cut short or damaged; copy it again"),
    "cut to its head": (lambda p: cut(p, 100), "cut short or damaged; copy it again"),
    "encrypted": (encrypted, "cut short or damaged; copy it again"),
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "a web page": (lambda p: p.write_text("<!DOCTYPE html>"), r"begins with b'<!DOCTYPE html>'"),
    "a note of Git LFS": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a plain pickle": (lambda p: p.write_bytes(pickle.dumps({"w": 1}, 4)), "a pickle of protocol 4"),
    "safetensors": (lambda p: checkpoint.save(p, {"w": torch.ones(1)}), "rename it to .safetensors"),
    "a tensor": (lambda p: torch.save(torch.ones(2), p), "holds a Tensor, expected a state dict"),
    "numbers": (lambda p: torch.save({"epoch": 3, "args": {}}, p), "holds no tensors, only epoch, args"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which people's files are still made with
def test_what_cannot_be_read_is_refused_in_one_whole_line(kind, tmp_path, capfd):
    make, message = REFUSED[kind]
    make(tmp_path / "w.pth")
    capfd.readouterr()
    with pytest.raises(ValueError, match=message) as refusal:
        checkpoint.read_weights(tmp_path / "w.pth")
    assert str(refusal.value).isprintable()
    assert str(refusal.value).startswith(f"{tmp_path / 'w.pth'} ")
    assert capfd.readouterr() == ("", "")


def test_a_name_in_a_file_does_not_reach_the_terminal_as_a_command(tmp_path):
    torch.save({"model": {"w": torch.tensor(float("nan"))}}, tmp_path / "w.pth")
    bell = {"\x1b[31mred\x07": torch.tensor(float("nan"))}
    torch.save(bell, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="red has NaN") as refusal:
        checkpoint.read_weights(tmp_path / "w.pth")
    assert str(refusal.value).isprintable()
    assert printable("\x1b[1mbold\x1b[0m\n  next\x9b") == "bold next"


def test_a_file_of_torch_save_named_safetensors(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"rename it to \.pth"):
        checkpoint.read_weights(tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore")  # torch's, of quantised tensors
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8), "w is quantised; expected real"),
        (lambda: torch.rand(3, device="meta"), "w is empty"),
        (lambda: torch.rand(3, dtype=torch.complex64), "w is complex"),
    ],
)
def test_tensors_that_are_no_weights(make, message, tmp_path):
    torch.save({"w": make()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        checkpoint.read_weights(tmp_path / "w.pth")


def test_sparse_tensors_are_weights(tmp_path):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "w.pth")
    assert torch.equal(checkpoint.read_weights(tmp_path / "w.pth")["w"], torch.eye(3))
