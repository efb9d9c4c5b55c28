"""Q/DQ: the file computes what the quantised network does, and its layers are layers of integers."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from kerf.deploy import cli as deploy_cli

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch import nn  # noqa: E402

from kerf.compress.models import create  # noqa: E402
from kerf.compress.training import quantise  # noqa: E402
from kerf.compress.training.quantise import Grid  # noqa: E402
from kerf.deploy.export import export  # noqa: E402
from tests.helpers.sweeps import sweep  # noqa: E402
from tests.helpers.torch_networks import OptionA, randomised  # noqa: E402

SIZE = (1, 3, 32, 32)


class Twice(nn.Module):
    """One layer called twice, two layers on one tensor."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = self.shared(self.shared(self.stem(x).relu()).relu()).relu()
        x = self.left(x) + self.right(x)
        return self.linear(x.mean((2, 3)))


def network(model: nn.Module, bits: dict[int, int]) -> tuple[nn.Module, dict[str, Grid], torch.Tensor]:
    """Weights on grids; bits by index of layer, else 8."""
    torch.manual_seed(0)
    model = randomised(model).eval()
    x = torch.randn(4, *SIZE[1:])
    found = quantise.calibrate(model, [x])
    grids = {path: Grid(bits.get(i, 8), *numbers) for i, (path, numbers) in enumerate(found.items())}
    quantise.Quantisers(grids).settle(model)
    return model, grids, x


MODELS = {"option_a": OptionA, "twice": Twice, "mobilenet_v3_small": lambda: create("mobilenet_v3_small", 10, 32)}


NAMES = sweep(MODELS, quick=("option_a", "twice"))


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    grids: dict[str, Grid]
    x: torch.Tensor
    reference: nn.Module
    path: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The file of a network by its name: exported once, which checks it within 1 %."""

    @cache
    def of(name: str) -> Exported:
        model, grids, x = network(MODELS[name](), {1: 3, 2: 2})
        reference = quantise.quantised(model, grids)
        path = export(model, x[:1], tmp_path_factory.mktemp(name) / "q.onnx", grids=grids, reference=reference)
        return Exported(model, grids, x, reference, path)

    return of


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_computes_what_torch_does(name, exported):
    made = exported(name)
    model, x, path, reference = made.model, made.x, made.path, made.reference
    onnx.checker.check_model(onnx.load(path), full_check=True)
    with torch.no_grad():
        wanted, plain = reference(x[:1]).numpy(), model(x[:1]).numpy()
    (found,) = onnxruntime.InferenceSession(path).run(None, {"input": x[:1].numpy()})  # fused, as users run it
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < 0.01
    assert error < np.abs(plain - wanted).max() / np.abs(wanted).max()  # nearer than without quantised inputs


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_reads_integers_of_its_bits(name, exported, tmp_path):
    grids, path = exported(name).grids, exported(name).path
    file = onnx.load(path)
    made = {output: node for node in file.graph.node for output in node.output}
    stored = {i.name: numpy_helper.to_array(i) for i in file.graph.initializer}
    layers = [n for n in file.graph.node if n.op_type in ("Conv", "Gemm")]
    assert {n.name.partition("#")[0] for n in layers} == set(grids)
    for node in layers:
        grid = grids[node.name.partition("#")[0]]
        of_input, of_weight = (made[name] for name in node.input[:2])
        assert of_input.op_type == of_weight.op_type == "DequantizeLinear"
        assert made[of_input.input[0]].op_type == "QuantizeLinear"
        assert stored[of_input.input[1]] == np.float32(grid.scale)
        assert stored[of_input.input[2]].dtype == np.uint8
        integers = stored[of_weight.input[0]]
        assert integers.dtype == np.int8
        assert np.abs(integers).max() == 2 ** (grid.bits - 1) - 1
    plain = export(exported(name).model, exported(name).x[:1], tmp_path / "f.onnx")
    assert path.stat().st_size < plain.stat().st_size


def test_reads_of_one_tensor_share_its_integers(exported):
    operators = [node.op_type for node in onnx.load(exported("twice").path).graph.node]
    assert operators.count("QuantizeLinear") == 5  # stem, shared twice, left and right together, linear
    assert operators.count("DequantizeLinear") == 5 + 5


def test_what_is_not_on_its_grid_or_not_there_is_refused(tmp_path):
    model, grids, x = network(OptionA(), {})
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] *= 1.01
    with pytest.raises(ValueError, match=r"conv1.weight is .* steps away from a grid of 8 bits"):
        export(model, x[:1], tmp_path / "q.onnx", grids=grids, reference=model)
    model, grids, x = network(OptionA(), {})
    with pytest.raises(ValueError, match="nowhere is quantised, but is no layer"):
        export(model, x[:1], tmp_path / "q.onnx", grids={"nowhere": Grid(8, 0.1, 0)}, reference=model)
    wrong = {path: Grid(8, grid.scale * 10, grid.zero) for path, grid in grids.items()}
    with pytest.raises(ValueError, match="more than the 1e-02 allowed"):
        export(model, x[:1], tmp_path / "q.onnx", grids=wrong, reference=quantise.quantised(model, grids))
    assert not list(tmp_path.iterdir())


def test_inspect_counts_quantised_layers(exported, capsys):
    assert deploy_cli.main(["inspect", str(exported("option_a").path)]) == 0
    said = capsys.readouterr().out
    assert "4 layers" in said
    assert "no kernel here" not in said
    assert "computed in floats" not in said
