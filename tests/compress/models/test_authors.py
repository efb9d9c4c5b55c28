"""Weights of authors, by their names: files as their programs write them, and the same outputs in our networks."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kerf.compress.models import create
from kerf.compress.training import checkpoint
from tests.helpers.random_networks import randomise

h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = False):
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
    ]


class V1(nn.Module):
    """As 1×N's models/mobilenet_v1.py is built: biases before batch norms, a classifier that is a convolution."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(*conv(3, 32, 3, 2), nn.ReLU())
        blocks, inputs = [], 32
        for outputs, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                                (1024, 2), (1024, 1)]:  # fmt: skip
            depthwise = conv(inputs, inputs, 3, stride, inputs)
            blocks.append(nn.Sequential(*depthwise, nn.ReLU(), *conv(inputs, outputs, bias=True), nn.ReLU()))
            inputs = outputs
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Conv2d(1024, 7, 1))

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(self.conv1(x)), 1)).flatten(1)


class V2Block(nn.Module):
    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden, self.residual = inputs * expand, stride == 1 and inputs == outputs
        first = [] if expand == 1 else [*conv(inputs, hidden), nn.ReLU6()]
        second = [*conv(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        self.conv = nn.Sequential(*first, *second, *conv(hidden, outputs))

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class V2(nn.Module):
    """As 1×N's models/mobilenet_v2.py: the layers of a block in one list."""

    def __init__(self):
        super().__init__()
        layers, inputs = [nn.Sequential(*conv(3, 32, 3, 2), nn.ReLU6())], 32
        for expand, outputs, count, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
                                               (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:  # fmt: skip
            for i in range(count):
                layers.append(V2Block(inputs, outputs, stride if i == 0 else 1, expand))
                inputs = outputs
        layers.append(nn.Sequential(*conv(320, 1280), nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0), nn.Linear(1280, 7))

    def forward(self, x):
        return self.classifier(self.features(x).mean(3).mean(2))


def same(theirs: nn.Module, arch: str, path, size: int = 96) -> None:
    ours = create(arch, 7, size).eval()
    checkpoint.load_weights(ours, path)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("build", "arch"), [(V1, "mobilenet_v1"), (V2, "mobilenet_v2")])
def test_mobilenets_of_1xn(build, arch, tmp_path):
    """With biases and masks beside the weights, in a checkpoint that DataParallel has put its name on."""
    theirs = randomise(build().float(), 3, 96, 96).float().eval()
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    masked = next(name for name in state if name.startswith("module.features.3") and state[name].ndim == 4)
    state[masked.replace("weight", "mask")] = (torch.rand(state[masked].shape) < 0.5).float()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "their.pth")
    with torch.no_grad():
        dict(theirs.named_parameters())[masked.removeprefix("module.")].mul_(state[masked.replace("weight", "mask")])
    same(theirs, arch, tmp_path / "their.pth")


def test_resnet50_of_1xn_has_torchvisions_names(tmp_path):
    model = create("resnet50", 7, 96).eval()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    state["module.layer1.0.conv1.mask"] = torch.ones_like(state["module.layer1.0.conv1.weight"])
    torch.save({"state_dict": state}, tmp_path / "their.pth")
    same(model, "resnet50", tmp_path / "their.pth")


def test_their_mobilenet_v3_is_another_function(tmp_path):
    names = ("features.2.conv.4.running_mean", "classifier.3.weight", "features.4.conv.5.fc.0.weight")
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "their.pth")
    with pytest.raises(ValueError, match="gate channels before their activation"):
        checkpoint.read_weights(tmp_path / "their.pth")


def resreps(model: nn.Module, shortcut: str) -> dict[str, torch.Tensor]:
    """A network's tensors by the names that ResRep gives them, from the longest to the shortest of its places."""
    stem = "stage1.conv1" if shortcut == "projection" else "conv1"
    found = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if name.endswith("num_batches_tracked"):
            continue
        if parts[0] in ("conv1", "bn1"):
            found[f"{stem}.{parts[0][:-1]}.{parts[1]}"] = value
        elif parts[0].startswith("layer"):
            stage, block, layer, *rest = parts
            if layer == shortcut:
                found[f"stage{stage[-1]}.projection.{('conv', 'bn')[int(rest[0])]}.{rest[1]}"] = value
            else:
                found[f"stage{stage[-1]}.block{block}.conv{layer[-1]}.{layer[:-1]}.{rest[0]}"] = value
        else:
            found[name] = value
    return found


def write(path, tensors) -> None:
    with h5py.File(path, "w") as file:
        for name, value in tensors.items():
            file.create_dataset(name.replace("/", "+"), data=value.numpy())
        file.create_dataset("deps", data=[16, 16])


@pytest.mark.parametrize(("arch", "shortcut"), [("resnet56_projection", "projection"), ("resnet50", "downsample")])
def test_resreps_hdf5(arch, shortcut, tmp_path):
    model = randomise(create(arch, 7, 96), 3, 96, 96).float().eval()
    theirs = resreps(model, shortcut)
    assert "stage2.block0.conv2.bn.running_var" in theirs
    assert "stage3.projection.conv.weight" in theirs
    write(tmp_path / "finish.hdf5", theirs)
    said: list[str] = []
    same(model, arch, tmp_path / "finish.hdf5")
    checkpoint.read_weights(tmp_path / "finish.hdf5", said.append)
    assert ["0.5" in line for line in said] == [True] * (shortcut == "projection")


def test_files_that_are_no_dense_network_say_so(tmp_path):
    theirs = resreps(create("resnet20_projection", 7, 32), "projection")
    write(tmp_path / "a.hdf5", theirs | {"stage1.block0.conv1.compactor.pwc.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="compactors in it"):
        checkpoint.read_weights(tmp_path / "a.hdf5")
    write(tmp_path / "b.hdf5", {name: value for name, value in theirs.items() if ".bn." not in name})
    with pytest.raises(ValueError, match="has converted, narrow and without batch norms"):
        checkpoint.read_weights(tmp_path / "b.hdf5")
    (tmp_path / "c.hdf5").write_bytes((tmp_path / "a.hdf5").read_bytes()[:1000])
    with pytest.raises(ValueError, match="no whole HDF5 file"):
        checkpoint.read_weights(tmp_path / "c.hdf5")


def test_without_h5py_there_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "a.hdf5", {})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"not installed: pip install kerf\[hdf5\]"):
        checkpoint.read_weights(tmp_path / "a.hdf5")


def test_other_networks_keep_their_names():
    from kerf.compress.models import authors

    for arch in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "resnet50", "resnet56"):
        state = create(arch, 7, 32).state_dict()
        assert list(authors.renamed(dict(state))) == list(state)
