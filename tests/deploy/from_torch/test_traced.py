"""What is changed in a traced graph, and the one line about what cannot be traced or written."""

import onnx
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from kerf.deploy.export import export  # noqa: E402
from kerf.errors import BadInput, Unsupported  # noqa: E402


class Standardised(nn.Conv2d):
    """As in Qiao et al., arXiv 1903.10520: the forward computes the weight."""

    def forward(self, x):
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / std, self.bias * 2, padding=1)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Standardised(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.register_buffer("mask", (torch.rand(5, 4) < 0.5).float())

    def forward(self, x):
        x = self.norm(self.first(self.norm(self.first(x))[:, :3]))
        return F.linear(F.linear(x.mean((2, 3)), self.weight * self.mask)[:, :4], self.weight * self.mask)


def test_weights_that_a_forward_computes_from_parameters_are_stored(tmp_path):
    path = export(Masked(), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")
    graph = onnx.load(path).graph
    stored = {i.name for i in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    assert all(node.input[1] in stored for node in layers)
    assert not {"Sqrt", "Div", "Sub", "Mul"} & {node.op_type for node in graph.node}


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = nn.Sequential(nn.Identity(), inner)

    def forward(self, x):
        return self.inner(x)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Two(nn.Module):
    def forward(self, x, y, z=1):
        return x + y


def by_value(x):
    return x if x.sum() > 0 else -x


REFUSED = [
    (Two(), r"Two takes 2 inputs, and the example has 1: give a tuple of them, or a dict by name"),
    (Calls(lambda x: {"y": 3}), r"Calls returns dict without a tensor; export expects one"),
    (Calls(lambda x: (x, "a")), r"output_1 is a str; export expects tensors"),
    (
        Outer(Calls(by_value)),
        r"in inner\.1 \(Calls\): .*data-dependent.*; where forward chooses .* the branch you need",
    ),
    (Outer(Calls(torch.special.bessel_j0)), r"no form of operator prims\.bessel_j0 of module inner\.1; replace it"),
    (Outer(nn.Conv2d(5, 4, 3)), r"in inner\.1 \(Conv2d\): Given groups=1"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_exported_is_one_line(model, message, tmp_path, capfd):
    with pytest.raises(BadInput, match=message) as refusal:
        export(model, torch.ones(1, 3, 8, 8), tmp_path / "m.onnx")
    assert str(refusal.value).isprintable()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        ("model.pth", torch.ones(1), "expects a torch.nn.Module, got str"),
        (nn.ReLU(), (torch.ones(1), 3), "a tensor, or a tuple or a dict of them, got int"),
        (nn.ReLU(), (), "got tuple"),
        (nn.ReLU(), torch.ones(1, dtype=torch.int64), r"of torch\.int64; export expects one of floats"),
    ],
)
def test_arguments_of_another_type(model, example, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        export(model, example, tmp_path / "m.onnx")


@pytest.mark.parametrize("function", [lambda x: x > 0, lambda x: x.argmax(1)])
def test_outputs_that_are_no_floats_are_compared_for_equality(function, tmp_path):
    assert export(Calls(function), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx").is_file()


def test_unsupported_is_what_kerf_has_no_way_for(tmp_path):
    with pytest.raises(Unsupported):
        export(Two(), torch.ones(1), tmp_path / "m.onnx")
