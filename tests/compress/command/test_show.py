"""What is printed about a checkpoint is what cost.count finds in it."""

import io
import re

import pytest
import torch
from rich.console import Console

from kerf.compress.command.show import show
from kerf.compress.models import create
from kerf.compress.network import cost, surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training import checkpoint

EXAMPLE = torch.zeros(1, 3, 32, 32)


class Latin(io.StringIO):
    encoding = "ascii"


def printed(path, file=None, width=160):
    file = file or io.StringIO()
    show(path, Console(file=file, width=width))
    return file.getvalue()


@pytest.fixture(scope="module")
def narrow():
    """A resnet20 with random channels cut and one filter zeroed: model, header, cost when dense."""
    torch.manual_seed(0)
    model = create("resnet20", 7, 32).eval()
    graph, dense = DependencyGraph.trace(model, EXAMPLE), cost.count(model, EXAMPLE)
    keep = {s.name: torch.rand(s.width) < 0.6 for s in graph.sets if not s.fixed}
    surgery.cut(model, graph, keep)
    with torch.no_grad():
        model.layer2[0].conv1.weight[0] = 0
    kept = {name: mask.nonzero().flatten().tolist() for name, mask in keep.items()}
    return model, {"arch": "resnet20", "num_classes": 7, "image_size": 32, "method": "resrep", "kept": kept}, dense


@pytest.fixture
def save(narrow, tmp_path):
    def write(**changes):
        state = {name: value for name, value in (narrow[1] | changes).items() if value != "absent"}
        checkpoint.save(tmp_path / "x.safetensors", narrow[0].state_dict(), state)
        return tmp_path / "x.safetensors"

    return write


@pytest.mark.parametrize("changes", [{}, {"num_classes": "absent"}])
def test_a_narrow_network_layer_by_layer(narrow, save, changes):
    model, state, dense = narrow
    left = cost.count(model, EXAMPLE, {p: model.get_parameter(p) != 0 for p in dense.layers})
    text = printed(save(**changes))
    assert "resnet20 for 32x32 images, method resrep" in text
    assert f"parameters {dense.params:,} → {left.params:,} ({left.params / dense.params:.2%} kept)" in text
    assert f"MACs {dense.macs:,} → {left.macs:,} ({left.macs / dense.macs:.2%} kept)" in text
    rows = [line.split() for line in text.splitlines() if ".weight " in line]
    assert [row[0] for row in rows] == list(dense.layers)
    for row in rows:
        layer = row[0]
        share = left.layers[layer].macs / dense.layers[layer].macs
        assert row[1] == "x".join(map(str, model.get_parameter(layer).shape))
        assert f"{share:.1%}" in row
        assert row[-1].count("█") == round(20 * share)
        assert len(row[-1]) == 20
    at = {row[0]: row for row in rows}
    filters = len(state["kept"]["layer2.0.conv1"])
    assert f"32→{filters}" in at["layer2.0.conv1.weight"]
    assert f"{1 / filters:.1%}" == at["layer2.0.conv1.weight"][7]  # zeros
    assert f"32→{filters}" == at["layer2.0.conv2.weight"][3]  # inputs
    assert at["linear.weight"][2] == "7"  # no change, one number
    assert at["layer2.0.conv1.weight"][4] == "1.18M"


def test_a_network_that_lost_no_channel(tmp_path):
    model = create("resnet20", 10, 32)
    dense = cost.count(model, EXAMPLE)
    for kept in ({}, {"kept": {}}):
        state = {"arch": "resnet20", "num_classes": 10, "image_size": 32, "method": "weight"} | kept
        checkpoint.save(tmp_path / "x.safetensors", model.state_dict(), state)
        text = printed(tmp_path / "x.safetensors")
        assert f"MACs {dense.macs:,} → {dense.macs:,} (100.00% kept)" in text
        assert "zeros" not in text
        assert "32→" not in text


def test_plain_letters_where_there_are_no_others(save):
    text = printed(save(), Latin(), width=100)
    assert text.isascii()
    assert "->" in text
    assert "#" in text
    assert max(map(len, text.splitlines()[2:])) <= 100
    assert len([line for line in text.splitlines() if ".weight" in line]) == 20  # no path is folded


def test_any_file_tensor_by_tensor(tmp_path):
    weights = {
        "a[bold].weight": torch.tensor([[1.0, -1.0], [0.0, 1e-6]]),
        "steps": torch.tensor(3),
        "nothing": torch.zeros(0, 4),
    }
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "w.pth")
    lines = [line.split() for line in printed(tmp_path / "w.pth").splitlines()]
    assert ["a[bold].weight", "2x2", "2.5e-07", "0.7071", "50.00%"] in lines
    assert ["steps", "scalar", "3", "0", "0.00%"] in lines
    assert ["nothing", "0x4", "-", "-", "-"] in lines
    assert " ".join(lines[-1]).endswith("w.pth: 3 tensors, 5 numbers, 24 bytes")


def test_kerfs_file_without_a_size_is_listed_too(narrow, save):
    text = printed(save(image_size="absent"))
    assert all(re.search(rf"^{re.escape(name)} ", text, re.MULTILINE) for name in narrow[0].state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet21"}, "unknown architecture 'resnet21'"),
        ({"arch": 3}, r"got `int` - at `\$.arch`"),
        ({"num_classes": "ten"}, r"got `str` - at `\$.num_classes`"),
        ({"num_classes": 9}, r"tells \d+ classes apart \(linear.weight is .*and 9 are expected"),
        ({"image_size": 0}, "its header says images of 0"),
        ({"kept": {"layer9.conv1": [0]}}, "pruned; this architecture has none of that name"),
        ({"kept": {"layer1.0.conv1": [99]}}, "kept channel 99"),
        ({"kept": {"layer1.0.conv1": []}}, "none of 16 channels would be left"),
        ({"kept": {"layer1.0.conv1": [-1]}}, "not a table of channel numbers"),
        ({"kept": [1, 2]}, r"got `array` - at `\$.kept`"),
        ({"kept": {"layer1.0.conv1": [0, 1]}}, "checkpoint of another architecture"),
    ],
)
def test_a_header_that_does_not_fit(save, changes, message):
    path = save(**changes)
    with pytest.raises(ValueError, match=message) as error:
        printed(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        printed(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        printed(tmp_path / "absent.pth")
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_text("not a checkpoint")
        with pytest.raises(ValueError, match=f"{name} (is not|cannot)") as error:
            printed(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        printed(tmp_path / "x.pth")
