"""ResRep: compactors, masks, folding; over every architecture that takes them."""

import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe
from kerf.compress.pruning.settings import Settings
from tests.helpers.archs import archs
from tests.helpers.attaching import BY_MACS, attached, plan, traced
from tests.helpers.random_networks import difference, images, randomise


@pytest.mark.parametrize("arch", archs("densenet40"))
def test_folding_compactors_keeps_the_function(arch):
    """Random compactors, some rows zero; fold, move constants, cut: the same outputs from a narrower network."""
    model, graph, units, chosen, x, _ = attached("resrep", arch)
    generator = torch.Generator().manual_seed(1)
    keep = []
    with torch.no_grad():
        for q in chosen.pressure.q:
            q.add_(0.3 * torch.randn(q.shape, generator=generator, dtype=q.dtype) / len(q) ** 0.5)
            kept = torch.rand(len(q), generator=generator) >= 0.4
            kept[0] = True
            q[~kept] = 0
            keep.append(kept)
        before = model(x)
        removed = chosen.remove(model, graph, units, keep, lambda: x)
        assert difference(before, model(x)) < 1e-6
    assert "not exact" not in removed.note
    assert not any("compactors" in name for name in model.state_dict())
    assert not any(module._forward_hooks for module in model.modules())
    assert {s.width for s in removed.graph.sets if s.name in removed.kept} == {
        int(k.sum()) for k in removed.kept.values()
    }


def test_folded_networks_train_on_from_where_they_are():
    """In training mode, too, a folded network computes what it did: its batch norms hold the statistics they see."""
    model, graph, units, chosen, x, _ = attached("resrep", "resnet20")
    x = images(64, 3, 32, 32)
    with torch.no_grad():
        for q in chosen.pressure.q:
            q.add_(0.1 * torch.randn(q.shape, generator=torch.Generator().manual_seed(2), dtype=q.dtype))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        model.train()(x)  # the running statistics are those of x
        plain = model.eval()(x)
        chosen.remove(model, graph, units, [torch.ones(u.count, dtype=torch.bool) for u in units], lambda: x)
        assert difference(plain, model(x)) < 1e-6
        assert difference(plain, model.train()(x)) < 1e-2


def test_masks_reach_the_target_with_rounded_widths():
    model, graph, x = traced("resnet20")
    chosen = METHODS["resrep"](Settings(by_macs=True, round_to=8))
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, plan(0.3, 1000))
    for _ in range(100):
        chosen.pressure._choose()
    assert chosen.pressure.reached
    assert {int(m.sum()) % 8 for m in chosen.pressure.masks} == {0}


class Doubtful(nn.Module):
    """Layers that compactors cannot be folded into: used twice, one norm for two, a norm without γ, a subclass."""

    class ConvReLU(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    def __init__(self):
        super().__init__()
        self.twice, self.a, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.one, self.two, self.shared = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.plain, self.bare = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)
        self.own, self.good, self.head = self.ConvReLU(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(self.twice(x)) + self.b(self.twice(2 * x))
        y = self.shared(self.two(self.shared(self.one(y)).relu()))
        y = self.own(self.bare(self.plain(y)).relu())
        return self.head(self.good(y).relu()).mean((2, 3))


def test_only_layers_that_can_take_compactors_get_them():
    model = randomise(Doubtful(), 3, 12, 12)
    x = images(2, 3, 12, 12)
    graph = DependencyGraph.trace(model, x[:1])
    chosen = METHODS["resrep"](Settings(by_macs=True, residual=True))
    units = chosen.granularity.split(model, graph, x[:1])
    assert [u.path for u in units] == ["good"]
    for name in ("slimming", "ucs", "rni"):
        recipe.check(model, METHODS[name](Settings(by_macs=True, residual=True)), graph, x[:1], 0.1)


def test_a_survivor_inherits_from_the_forgotten():
    """K = [[2], [3]], b = (1, -1), Q = [[1, 0.5], [0, 0]] fold into K' = 3.5, b' = 0.5: slicing would give 2 and 1."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    x = torch.randn(2, 1, 4, 4)
    graph = DependencyGraph.trace(model, x[:1])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 3.0]).view(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([1.0, -1.0]))
    chosen = METHODS["resrep"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    chosen.pressure.attach(model, graph, units, plan(0.3))
    with torch.no_grad():
        chosen.pressure.q[0].copy_(torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
        chosen.remove(model, graph, units, [torch.tensor([True, False])], lambda: x)
    assert model[0].weight.flatten().tolist() == pytest.approx([3.5])
    assert model[0].bias.tolist() == pytest.approx([0.5])


def test_compactor_gradients_forget_the_task_and_feel_the_lasso():
    """Row (3, 4) feels λ (0.6, 0.8); a masked row nothing else; a zero row no NaN."""
    chosen = METHODS["resrep"](BY_MACS, lasso=1e-3)
    pressure = chosen.pressure
    pressure.q = [nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))]
    pressure.q[0].grad = torch.ones(2, 2)
    pressure.masks, pressure.first, pressure.interval = [torch.tensor([0.0, 1.0])], 10, 1
    pressure.choosing = pressure.pace = 1e-3
    pressure.edit_gradients(nn.Identity(), 0)
    assert pressure.q[0].grad[0].tolist() == pytest.approx([0.6e-3, 0.8e-3])
    assert pressure.q[0].grad[1].tolist() == pytest.approx([1.0, 1.0])


def test_masks_grow_step_by_step_then_hold_the_target():
    model, graph, x = traced("resnet20")
    chosen = METHODS["resrep"](BY_MACS, mask_interval=1, granularity=4, start=0.0)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(0.5, 1000))
    pressure.granularity = 4  # as given, not as a short run would have it
    masked = []
    for _ in range(80):
        pressure._choose()
        masked.append(sum(int((m == 0).sum()) for m in pressure.masks))
    growth = [b - a for a, b in zip([0, *masked], masked)]
    assert max(growth) <= 4
    assert growth[-1] == 0
    widths = {u.path: int(m.sum()) for u, m in zip(units, pressure.masks)}
    assert 0.49 < units[0].widths.macs(widths) / units[0].widths.dense <= 0.5


@pytest.mark.parametrize("own", [{"start": 1.0}, {"start": -0.1}, {"granularity": 0}])
def test_a_run_in_which_no_mask_would_be_chosen_is_refused(own):
    with pytest.raises(ValueError, match="expected 0 to below 1, and at least 1"):
        METHODS["resrep"](BY_MACS, **own)
