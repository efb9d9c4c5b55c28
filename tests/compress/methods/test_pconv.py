"""PCONV: an example worked by hand, exact budgets, ADMM, resuming, and the packed format of what comes out."""

import copy

import pytest
import torch
from torch import nn

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS, fkw
from kerf.compress.methods.pconv import (
    CANDIDATES,
    T_SHAPES,
    Constraint,
    most_frequent,
    patterns,
    score,
    smallest,
    to_connections,
    to_patterns,
)
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.train import Optim
from kerf.compress.units.weights import Patterns, nearest
from tests.helpers.attaching import plan, traced

KERNEL = torch.arange(1.0, 10.0).view(1, 9)


def test_the_pattern_that_keeps_most_is_taken():
    energy = KERNEL.square() @ T_SHAPES.float().T
    assert energy.tolist() == [[141, 129, 109, 81]]
    assert nearest(KERNEL, T_SHAPES).tolist() == [0]
    kept = to_patterns(KERNEL.view(1, 1, 3, 3), T_SHAPES, 1)
    assert kept[kept != 0].tolist() == [4, 5, 6, 8]
    assert float(kept.norm()) == pytest.approx(11.8743, abs=1e-4)
    assert int(KERNEL.square().topk(4).values.sum()) == 230
    assert nearest(torch.ones(3, 9), T_SHAPES).tolist() == [0, 0, 0]  # of equals the first


def test_candidates_are_all_with_the_centre():
    assert CANDIDATES.shape == (56, 9)
    assert len(CANDIDATES.unique(dim=0)) == 56
    assert CANDIDATES[:, 4].all()
    assert (CANDIDATES.sum(1) == 4).all()


def test_the_most_frequent_patterns_are_mined():
    wanted = patterns([[0, 2, 4, 8], [4, 5, 6, 7], [3, 4, 5, 7]])
    kernels = torch.cat([wanted[i].float().repeat(times, 1) for i, times in enumerate((2, 5, 3))])
    assert torch.equal(most_frequent(kernels, 3), wanted[[1, 2, 0]])


def test_projections_are_idempotent():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    for project in (
        lambda w: to_patterns(w, T_SHAPES, 30),
        lambda w: to_connections(w, 11, False),
        lambda w: to_connections(w, 11, True),
    ):
        once = project(weight)
        assert torch.equal(project(once), once)
        assert not torch.equal(once, weight)
    assert int((to_connections(weight, 11, False) == 0).all(3).all(2).sum()) == 11
    assert float((to_patterns(weight, T_SHAPES, 30) != 0).float().mean()) == pytest.approx(4 / 9)


def test_balanced_filters_have_equal_work():
    scores = torch.arange(12.0).view(3, 4)  # the first filter's are the smallest
    assert smallest(scores, 5).sum(1).tolist() == [4, 1, 0]
    assert smallest(scores, 5, balanced=True).sum(1).tolist() == [2, 2, 1]
    assert smallest(scores, 6, balanced=True).tolist() == [[True, True, False, False]] * 3
    assert smallest(scores, 12, balanced=True).all()


class Net(nn.Module):
    """Stem, a 3×3, a 1×1 and a 5×5 convolution and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, padding=1)
        self.point, self.wide, self.linear = nn.Conv2d(12, 10, 1), nn.Conv2d(10, 6, 5, padding=2), nn.Linear(6, 10)

    def forward(self, x):
        return self.linear(self.wide(self.point(self.conv(self.stem(x)).relu()).relu()).mean((2, 3)))


def network():
    torch.manual_seed(0)
    model = Net()
    return model, DependencyGraph.trace(model, torch.zeros(1, 3, 8, 8)), torch.zeros(1, 3, 8, 8)


def test_units_are_parts_of_kernels():
    model, graph, x = network()
    units = {u.path: u for u in Patterns(T_SHAPES, full=True).split(model, graph, x)}
    assert {path: u.count for path, u in units.items()} == {
        "conv.weight": 192, "point.weight": 120, "wide.weight": 60, "linear.weight": 60,
    }  # fmt: skip
    unit, weight = units["conv.weight"], model.conv.weight.detach()
    assert unit.sizes.unique_consecutive().tolist() == [5, 4]
    assert int(unit.sizes.sum()) == weight.numel()
    assert unit.rows().square().sum() == pytest.approx(float(weight.square().sum()), rel=1e-5)
    filled = torch.zeros_like(weight)
    for i in range(unit.count):
        one = torch.zeros(unit.count, dtype=torch.bool)
        one[i] = True
        mask = unit.mask(one)
        assert int(mask.sum()) == int(unit.sizes[i])
        assert unit.rows()[i].square().sum() == pytest.approx(float(weight[mask].square().sum()), rel=1e-5)
        filled += mask
    assert (filled == 1).all()
    squares = weight.square().flatten(2).sum(2).flatten()
    assert torch.allclose(score(unit)[96:], squares.sqrt())  # kernels go by all of their weights
    assert torch.allclose(score(units["wide.weight"]), model.wide.weight.detach().flatten(2).norm(dim=2).flatten())


@pytest.mark.parametrize("balance", ["layer", "filter"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 5 / 9, 0.6, 0.9])
def test_each_layer_loses_its_share_first_outside_patterns_then_whole_kernels(sparsity, balance):
    model, graph, x = network()
    chosen = METHODS["pconv"](Settings(full=True), balance=balance)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = prune(model, chosen, graph, x, sparsity).masks
    assert set(masks) == {"conv.weight", "point.weight", "wide.weight", "linear.weight"}
    for path, mask in masks.items():
        kernels, asked = mask.reshape(*mask.shape[:2], -1), sparsity * mask.numel()
        assert asked - 25 < int((~mask).sum()) <= asked + 1e-6, path
        assert mask.any(), path
        assert torch.equal(model.get_parameter(path), before[path] * mask)
        if path != "conv.weight":
            assert torch.equal(kernels.any(2), kernels.all(2)), path
            continue
        assert asked - 5 < int((~mask).sum())
        sizes = kernels.sum(2)
        if sparsity <= 5 / 9:
            assert set(sizes.unique().tolist()) <= {4, 9}
        else:
            assert set(sizes.unique().tolist()) <= {0, 4}
        for kernel in kernels[sizes == 4]:
            assert bool((kernel == T_SHAPES).all(1).any())
        if balance == "filter" and sparsity > 5 / 9:
            left = kernels.any(2).sum(1)
            assert int(left.max() - left.min()) <= 1


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2_x0_5"])
def test_what_is_pruned_can_be_packed(arch):
    model, graph, x = traced(arch)
    model = copy.deepcopy(model).float()
    masks = prune(model, METHODS["pconv"](Settings(), mined=8), graph, x[:1].float(), 0.7).masks
    for path in masks:
        weight = model.get_parameter(path).detach()
        packed = fkw.pack(weight)
        assert len(packed.patterns) <= 8
        assert torch.equal(fkw.unpack(packed), weight)
        assert len(packed.weight) == int((weight != 0).sum())


def attached(steps: int = 6000, sparsity: float = 0.7, **own):
    model, graph, x = network()
    chosen = METHODS["pconv"](Settings(), **own)
    units = chosen.granularity.split(model, graph, x)
    chosen.pressure.attach(model, graph, units, plan(sparsity, steps))
    return model, chosen, units


def test_alternating_directions():
    """ρ (W − Z + U) by hand, for a set that is zero."""
    weight = nn.Parameter(torch.tensor([[[[2.0]]]]))
    held = Constraint(torch.zeros_like, weight, 0.1)
    weight.grad = torch.tensor([[[[1.0]]]])
    with torch.no_grad():
        held.pull()
        assert weight.grad.item() == pytest.approx(1.0 + 0.1 * 2.0)
        assert held.update() == 0  # the kernel's zeros are where they were
        assert held.u.item() == 2.0
        held.pull()
        assert weight.grad.item() == pytest.approx(1.2 + 0.1 * (2.0 + 2.0))


def test_without_rho_weights_rest():
    model, chosen, _ = attached(pattern_rho=0.0, kernel_rho=0.0)
    for step in range(300):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        chosen.pressure.edit_gradients(model, step)
        assert all(not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("steps", [300, 6000])
def test_weights_that_nothing_holds_meet_their_patterns(steps):
    model, chosen, units = attached(steps)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = {u.path: model.get_parameter(u.path).detach().clone() for u in units}
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        chosen.pressure.edit_gradients(model, step)
        optimiser.step()
    keep = chosen.scope([chosen.criterion(u) for u in units], units, 0.7)
    for unit, kept in zip(units, keep):
        weight, mask = model.get_parameter(unit.path).detach(), unit.mask(kept)
        assert float(weight[~mask].norm()) < 0.05 * float(before[unit.path][~mask].norm())
        assert float(weight[mask].norm()) > 0.9 * float(before[unit.path][mask].norm())
    assert "farthest layer from its set 0.0" in chosen.pressure.report(model)


def test_long_phases_have_the_published_rho():
    assert {c.rho for c in attached(10**7)[1].pressure.constraints} == {1e-4}
    chosen = attached(10**7, kernel_rho=1e-3)[1]
    assert [c.rho for c in chosen.pressure.constraints] == [1e-4, 1e-3, 1e-3, 1e-3]  # 1×1 and 5×5 have no patterns


def quick(tmp_path=None, **options):
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 32, 32))
    data = open_data("synthetic", Options(train_batch=4, subset=128))
    chosen = METHODS["pconv"](Settings(), mined=8)
    outcome = run(
        model, chosen, data, Budget(0.75, 0, 4), 0, graph=graph,
        optim=Optim(LearningRate(0.02, policy="cos_step", warmup=0)), **options,
    )  # fmt: skip
    return model, outcome


@pytest.mark.slow  # half a minute; a shorter run is stopped in tests/compress/training/test_masking.py
def test_a_stopped_run_resumes_to_the_same_end(tmp_path):
    class Stop(Exception):
        pass

    whole, outcome = quick()
    assert all(torch.equal(whole.get_parameter(path) != 0, mask) for path, mask in outcome.masks.items())
    file = tmp_path / "last.safetensors"

    def stopping(rows):  # under pressure, with duals that are not zero
        if rows:
            raise Stop

    with pytest.raises(Stop):
        quick(file=file, on_history=stopping)
    again, resumed = quick(file=file, resume=True)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in outcome.history]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"balance": "row"}, "balance is 'row': expected one of layer, filter"),
        ({"mined": 57}, "mined is 57: expected 0, or at most the 56"),
        ({"rounds": 0}, "rounds is 0"),
        ({"kernel_rho": -1.0}, "the smaller ρ -1.0"),
    ],
)
def test_bad_numbers_are_one_line(own, message):
    with pytest.raises(ValueError, match=message):
        METHODS["pconv"](Settings(), **own)
