"""Every block of docs/python.md, as it stands there."""

import re
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
LOOP, ATTACHED, LIGHTNING = BLOCKS


def run(block: str) -> dict:
    names: dict = {"__name__": "page"}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_are_short(block):
    assert len([line for line in block.splitlines() if line.strip()]) <= 25


@pytest.mark.skipif(not (PAGE.parents[1] / "tune" / "pipeline.py").is_file(), reason="kerf.compile is not here yet")
@pytest.mark.slow  # a minute; the README's program, in tests/test_docs.py, goes the same way
def test_a_network_is_pruned_trained_exported_compiled_and_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(LOOP)
    assert not names["pruned"].attached
    said = capsys.readouterr().out
    assert "Pruned(one_by_n of MobileNetV3: MACs" in said
    assert "zero blocks 50%" in said
    found = torch.tensor(names["kerf"].load("model.kerf").run(names["x"].numpy()))
    with torch.no_grad():
        wanted = names["model"].eval()(names["x"])
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_a_method_is_attached_and_finished(capsys):
    names = run(ATTACHED)
    pruned = names["pruned"]
    assert pruned.macs <= 0.7 * pruned.macs_dense
    assert "channels left" in capsys.readouterr().out


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))


def test_the_callback_prunes_holds_and_lets_go(monkeypatch):
    if find_spec("lightning") is None:  # its protocol: the hooks are called by name, in this order
        pages = {name: types.ModuleType(name) for name in ("lightning", "lightning.pytorch")}
        pages["lightning.pytorch.callbacks"] = types.ModuleType("lightning.pytorch.callbacks")
        pages["lightning.pytorch.callbacks"].Callback = object
        for name, page in pages.items():
            monkeypatch.setitem(sys.modules, name, page)
    x = torch.randn(1, 3, 8, 8)
    callback = run(LIGHTNING)["Pruning"](x, n=2)
    module = Small()
    callback.setup(None, module, "fit")
    optimizer = torch.optim.Adam(module.parameters())
    trainer = types.SimpleNamespace(optimizers=[optimizer])
    callback.on_train_start(trainer, module)
    gone = ~callback.pruned.masks["2.weight"]
    for _ in range(3):
        module.model(x).square().sum().backward()
        optimizer.step()
        assert not module.model[2].weight[gone].any()
    callback.on_train_end(trainer, module)
    module.model(x).square().sum().backward()
    optimizer.step()
    assert bool(module.model[2].weight[gone].any())
