"""Export keeps the function and every pruned zero, and refuses what it cannot keep."""

from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from kerf.deploy import export as export_stage  # noqa: E402
from kerf.deploy.export import export  # noqa: E402
from tests.helpers.torch_networks import OptionA, randomised  # noqa: E402


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def stored(path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("arch", "size", "kept"),
    [
        ("mobilenet_v2", 32, {"Clip": 35}),
        pytest.param("mobilenet_v3_small", 224, {"HardSwish": 19, "HardSigmoid": 9}, marks=pytest.mark.slow),
        ("resnet18", 32, {"Add": 8}),
    ],
)
def test_networks_export_with_folded_convolutions_and_whole_activations(arch, size, kept, tmp_path):
    model = randomised(getattr(torchvision.models, arch)(num_classes=10))
    model = model.to(memory_format=torch.channels_last)  # as training leaves it
    path = export(model, torch.randn(1, 3, size, size), tmp_path / "model.onnx")
    found = operators(path)
    assert "BatchNormalization" not in found
    assert {op: found[op] for op in kept} == kept
    names = [node.name for node in onnx.load(path).graph.node]
    assert len(set(names)) == len(names)
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)} <= set(names)


def test_option_a_shortcut_and_batch(tmp_path):
    model = randomised(OptionA())
    path = export(model, torch.randn(5, 3, 32, 32), tmp_path / "new" / "model.onnx")
    graph = onnx.load(path).graph
    assert "BatchNormalization" not in operators(path)
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [5, 3, 32, 32]
    assert (graph.input[0].name, graph.output[0].name) == ("input", "output")


def test_file_stands_alone_and_tells_nothing_of_the_machine(tmp_path):
    path = export(OptionA(), torch.randn(1, 3, 16, 16), tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert b"/tests/" not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_pruned_blocks_are_exact_positive_zeros_in_the_file(tmp_path):
    model = randomised(OptionA())
    keep = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = keep.repeat_interleave(4, dim=0)[:, :, None, None]
    model.conv2.weight.data *= mask
    path = export(model, torch.randn(1, 3, 16, 16), tmp_path / "model.onnx")
    (weight,) = (stored(path)[n.input[1]] for n in onnx.load(path).graph.node if n.name == "conv2")
    assert np.array_equal(weight != 0, mask.expand(16, 16, 3, 3).numpy())
    assert not np.signbit(weight[weight == 0]).any()


def test_denormals_are_flushed_and_the_model_is_left_alone(tmp_path):
    model = OptionA()
    with torch.no_grad():
        model.conv1.weight[0] = 1e-40
        model.linear.weight[0] = -1e-40
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    path = export(model, torch.randn(1, 3, 16, 16), tmp_path / "model.onnx")
    smallest = np.finfo(np.float32).tiny
    floats = [a for a in stored(path).values() if a.dtype == np.float32]
    assert all(((a == 0) | (np.abs(a) >= smallest)).all() for a in floats)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class PreActivation(nn.Module):
    """Batch norms that must not be folded: before a convolution, after one with two readers, after a shared one."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(4)
        self.fork = nn.Conv2d(4, 4, 1)
        self.after_fork = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.after_shared = nn.BatchNorm2d(4)
        self.features = nn.Linear(4, 6)
        self.after_linear = nn.BatchNorm1d(6)

    def forward(self, x):
        y = self.fork(F.relu(self.first(x)))
        y = F.relu(self.after_fork(y)) + y
        y = F.relu(self.shared(self.after_shared(self.shared(y))))
        return self.after_linear(self.features(y.mean((2, 3))))


def test_only_foldable_batch_norms_are_folded(tmp_path):
    path = export(randomised(PreActivation()), torch.randn(2, 4, 8, 8), tmp_path / "model.onnx")
    assert operators(path)["BatchNormalization"] == 3


def test_quiet(tmp_path, capfd, recwarn):
    export(OptionA(), torch.randn(1, 3, 16, 16), tmp_path / "model.onnx")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_weights_are_refused_by_name(value, tmp_path):
    model = OptionA()
    model.conv1.weight.data[3, 2, 0, 0] = value
    with pytest.raises(ValueError, match=r"conv1\.weight has NaN or infinite"):
        export(model, torch.randn(1, 3, 16, 16), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_disagreement_leaves_nothing_behind(tmp_path, monkeypatch):
    def damage(module):
        conv = next(n for n in module.graph.nodes if n.target is torch.ops.aten.conv2d.default)
        weight = module.get_parameter(conv.args[1].target)
        weight.data[0] += 0.1
        return module

    fold = export_stage.fold_batchnorm
    monkeypatch.setattr(export_stage, "fold_batchnorm", lambda module: damage(fold(module)))
    with pytest.raises(ValueError, match=r"differ by .* relative"):
        export(OptionA(), torch.randn(1, 3, 16, 16), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(export_stage.files.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        export(OptionA(), torch.randn(1, 3, 16, 16), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"old"


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.mask = nn.Parameter(torch.ones(4, 3, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask * x.mean())


class Number(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), 3


@dataclass
class Answer:
    scores: torch.Tensor
    maps: list[torch.Tensor]


class Two(nn.Module):
    """Two inputs, and an answer of the kind that it is given."""

    def __init__(self, answer=lambda scores, maps: (scores, maps)):
        super().__init__()
        self.conv, self.answer = nn.Conv2d(3, 4, 3), answer

    def forward(self, image, mask):
        y = self.conv(image) * mask
        return self.answer(y.mean((2, 3)), y)


INPUTS = torch.randn(1, 3, 8, 8), torch.rand(1, 1, 6, 6)


@pytest.mark.parametrize(
    ("answer", "outputs"),
    [
        (lambda a, b: (a, b), ["output_0", "output_1"]),
        (lambda a, b: [a, (b, a * 2)], ["output_0", "output_1_0", "output_1_1"]),
        (lambda a, b: OrderedDict(out=a, aux=b), ["out", "aux"]),
        (lambda a, b: {"boxes": {"low": a, "high": [b]}, "mask": a + 1}, ["boxes.low", "boxes.high_0", "mask_output"]),
        (lambda a, b: Answer(a, [b]), ["scores", "maps_0"]),
        (lambda a, b: a, ["output"]),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_several_inputs_and_outputs_have_the_names_of_arguments_and_keys(answer, outputs, by_name, tmp_path):
    example = {"mask": INPUTS[1], "image": INPUTS[0]} if by_name else INPUTS
    path = export(Two(answer), example, tmp_path / "model.onnx")  # compared with torch, output by output
    graph = onnx.load(path).graph
    assert sorted(i.name for i in graph.input) == ["image", "mask"]
    assert {i.name: len(i.type.tensor_type.shape.dim) for i in graph.input} == {"image": 4, "mask": 4}
    assert [o.name for o in graph.output] == outputs


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Masked(), (1, 3, 8, 8), "computed by the network"),
        (Number(), (1, 3, 8, 8), "output_1 is a int; export expects tensors"),
        (Two(), (1, 3, 8, 8), "Two takes 2 inputs, and the example has 1: give a tuple of them, or a dict by name"),
        (OptionA(), (1, 5, 8, 8), r"OptionA cannot be traced with an input of shape \(1, 5, 8, 8\)"),
    ],
)
def test_unfit_models_are_refused_in_one_line(model, shape, message, tmp_path):
    with pytest.raises(ValueError, match=message) as refusal:
        export(model, torch.randn(shape), tmp_path / "model.onnx")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
