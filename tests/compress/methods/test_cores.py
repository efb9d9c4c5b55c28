"""What each method is for, on networks small enough to train in a test: emptied, none of these holds."""

import copy

import pytest
import torch
from torch import nn

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.methods.rni import SigmoidBatchNorm2d
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Plan
from kerf.compress.training.train import Optim
from tests.helpers.attaching import BY_MACS, FEW, plan, traced
from tests.helpers.random_networks import difference, images
from tests.helpers.sweeps import sweep


class Small(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.Conv2d(width, 4, 3)
        self.first, self.second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.one(x)).relu()
        return self.head(self.second(self.two(x)).relu()).mean((2, 3))


def small(width: int = 8) -> tuple[nn.Module, DependencyGraph, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model, x, y = Small(width).double(), images(16, 3, 9, 9), torch.arange(16) % 4
    return model, DependencyGraph.trace(model.eval(), x[:1]), x, y


def task(model, x, y):
    logits = model(x)
    return nn.functional.cross_entropy(logits, y), logits


def trained(name: str, steps: int, sparsity: float, rate: float = 0.05, settings: Settings = BY_MACS, **own):
    """The network under the method's pressure, after so many steps; momentum 0.9, a rate that falls to zero."""
    model, graph, x, y = small()
    chosen = METHODS[name](settings, **own)
    units = chosen.granularity.split(model, graph, x[:1])
    falling = lambda step: rate * (1 - step / steps)  # noqa: E731
    pressure = chosen.pressure
    pressure.attach(model, graph, units, Plan(steps, falling, sparsity))
    model.double().train()
    named, groups = dict(model.named_parameters()), []
    for group in pressure.parameter_groups(model):
        options = {"momentum": group.momentum, "weight_decay": group.weight_decay}
        options = {k: v for k, v in options.items() if v is not None}
        groups.append({"params": [named.pop(n) for n in group.names], "scale": group.scale, **options})
    groups.append({"params": list(named.values()), "scale": 1.0})
    sgd = torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=1e-4)
    for step in range(steps):
        for group in sgd.param_groups:
            group["lr"] = falling(step) * group["scale"]
        sgd.zero_grad()
        pressure.loss(model, x, y, task, step)[0].backward()
        pressure.edit_gradients(model, step)
        sgd.step()
        pressure.after_step(model, step)
    return model.eval(), graph, units, chosen, x


def removed(model, graph, units, chosen, x, sparsity: float) -> float:
    """By how much the outputs change when the method's choice is carried out."""
    with torch.no_grad():
        before = model(x)
        scores = recipe.scores(model, chosen, graph, units, lambda: iter([(x, torch.zeros(len(x)))]))
        keep = chosen.scope(scores, units, sparsity)
        assert not all(k.all() for k in keep)
        recipe.remove(model, chosen, graph, units, keep, lambda: x)
        return float(difference(before, model(x)))


def test_csgd_ends_with_equal_filters_that_can_be_trimmed():
    model, graph, units, chosen, x = trained("csgd", 600, 0.5, settings=Settings())
    apart = chosen.pressure.deviation(model)
    assert max(apart["kernels"], apart["vectors"]) < 1e-6
    assert sum(len(chosen.pressure.into[u.path].unique()) for u in units) < sum(u.count for u in units)
    assert removed(model, graph, units, chosen, x, 0.5) < 1e-3  # statistics of a cluster's filters come together, too


def test_resrep_ends_with_rows_of_zeros_and_cuts_them_without_loss():
    model, graph, units, chosen, x = trained("resrep", 1500, 0.5, rate=0.01)
    pressure = chosen.pressure
    assert pressure.reached
    norms = torch.cat([q.detach().norm(dim=1)[mask == 0] for q, mask in zip(pressure.q, pressure.masks)])
    assert len(norms)
    assert float(norms.max()) < 1e-4
    alive = torch.cat([q.detach().norm(dim=1)[mask == 1] for q, mask in zip(pressure.q, pressure.masks)])
    assert float(alive.min()) > 0.1
    assert removed(model, graph, units, chosen, x, 0.5) < 1e-3


def test_compactors_have_the_authors_momentum_and_no_decay():
    model, graph, x = traced("resnet20")
    pressure = METHODS["resrep"](BY_MACS).pressure
    pressure.attach(model, graph, METHODS["resrep"](BY_MACS).granularity.split(model, graph, x[:1]), plan(0.5, 5000))
    (group,) = pressure.parameter_groups(model)
    assert [n.partition(".")[0] for n in group.names] == ["compactors"] * len(pressure.q)
    assert (group.momentum, group.weight_decay, group.nesterov, group.scale) == (0.99, 0.0, False, 1.0)


def test_importances_learn_ten_times_as_fast_and_do_not_decay():
    model, graph, _ = traced("resnet20")
    pressure = METHODS["rni"](BY_MACS).pressure
    pressure.attach(model, graph, (), plan())
    (group,) = pressure.parameter_groups(model)
    norms = [n for n, m in model.named_modules() if isinstance(m, SigmoidBatchNorm2d)]
    assert list(group.names) == [f"{n}.weight" for n in norms]
    assert len(norms) == 19
    assert (group.scale, group.weight_decay, group.momentum) == (10.0, 0.0, None)


def test_slimming_pulls_every_scale_by_its_sign():
    model, graph, x = traced("resnet20")
    pressure = METHODS["slimming"](BY_MACS, reg_weight=0.25).pressure
    pressure.attach(model, graph, (), plan())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight[:4] *= -1
    nothing = lambda *_: (torch.zeros((), dtype=torch.double), x)  # noqa: E731
    pressure.loss(model, x, x, nothing, 0)[0].backward()
    assert all(torch.equal(m.weight.grad, 0.25 * m.weight.detach().sign()) for m in norms)


def test_slimming_cuts_what_the_penalty_has_made_zero_without_loss():
    model, graph, x = traced("resnet20")
    chosen = METHODS["slimming"](Settings())
    units = chosen.granularity.split(model, graph, x[:1])
    random = torch.Generator().manual_seed(0)
    gone = {}
    with torch.no_grad():
        for unit in units:
            norm = model.get_submodule(graph.norms[unit.channels.makers[0]])
            zero = torch.rand(unit.count, generator=random) < 0.4
            zero[0] = False
            norm.weight[zero], norm.bias[zero] = 0.0, 0.0
            gone[unit.path] = zero
        before = model(x)
        share = sum(int(z.sum()) for z in gone.values()) / sum(u.count for u in units)
        keep = chosen.scope([chosen.criterion(u) for u in units], units, share)
        assert all(torch.equal(~k, gone[u.path]) for u, k in zip(units, keep))
        recipe.remove(model, chosen, graph, units, keep, lambda: x)
        assert difference(before, model(x)) < 1e-9


def searched(step: int, steps: int = 100, width: int = 8):
    """DMCP's pressure on the small network, and the gradients of one loss."""
    model, graph, x, y = small(width)
    chosen = METHODS["dmcp"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(0.5, steps))
    model.double().train()
    return model, pressure, x, y


def test_dmcp_trains_four_widths_at_once():
    """The full network learns the labels, the least and two random ones what it says."""
    model, pressure, x, y = searched(0)
    drawn = iter([[4, 6], [8, 3]])
    pressure._widths = lambda _: next(drawn)
    wanted, logits = task(model, x, y)
    teacher = logits.detach().log_softmax(1)
    for widths in ([c.least for c in pressure.chains], [4, 6], [8, 3]):
        pressure.mode = {id(a): w for a, w in zip(pressure.alphas, widths)}
        student = model(x).log_softmax(1)
        wanted = wanted + (teacher.exp() * (teacher - student)).sum(1).mean()
    pressure.mode = "full"
    found, _ = pressure.loss(model, x, y, task, 0)
    assert float(found) == pytest.approx(float(wanted))
    assert pressure.mode == "full"


def test_dmcps_chances_learn_in_the_second_half_alone():
    model, pressure, x, y = searched(0, width=20)  # under 10 channels there is nothing to choose from
    pressure.loss(model, x, y, task, 49)[0].backward()
    assert all(alpha.grad is None for alpha in pressure.alphas)
    pressure.loss(model, x, y, task, 50)[0].backward()
    assert all(alpha.grad is not None and alpha.grad.ne(0).any() for alpha in pressure.alphas)


def test_dmcps_search_moves_no_weight():
    model, pressure, x, y = searched(0, width=20)
    model.zero_grad(set_to_none=True)
    pressure._search(model, x, y, task).backward()
    own = {id(alpha) for alpha in pressure.alphas}
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)
    assert all(alpha.grad.ne(0).any() for alpha in pressure.alphas)


def test_dmcp_draws_from_its_chains_more_and_more_often(monkeypatch):
    """With chance 1 − q, q = 0.9999^2 in the first ten steps of the search, and so on; never before it."""
    _, pressure, *_ = searched(0, steps=200_000)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.9997))
    for chain in pressure.chains:
        chain.uniform, chain.sample = lambda: 0, lambda _: 1
    assert pressure._widths(0) == [0] * len(pressure.chains)
    assert pressure._widths(100_009)[0] == 0  # q = 0.9998
    assert pressure._widths(100_010)[0] == 1  # q = 0.9996


# whose choice says which channels matter: not those that cluster, search widths or reshape what they cut
CHOOSING = [
    "l1", "ucs", "slimming", "rni", "greg1", "greg2", "gate_decorator", "bwcp", "c2s2", "dsc2", "hrank", "ezcrop",
    "prunenet", "while_training", "frs", "snapshots", "obs_channels",
]  # fmt: skip


@pytest.mark.parametrize("name", sweep(CHOOSING, quick=("rni", "gate_decorator", "frs", "hrank", "prunenet", "bwcp")))
def test_useless_channels_go_where_a_random_choice_would_keep_half(name):
    """Half of the channels inside blocks are planted: small filters, hardly scaled, always below zero, hardly read."""
    torch.manual_seed(0)
    model = create("resnet20", 10, 16).eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 16, 16))
    useless: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for path, block in model.named_modules():
            if hasattr(block, "conv2"):
                bad = torch.rand(block.conv1.out_channels) < 0.5
                block.conv1.weight[bad] *= 1e-3
                block.bn1.weight[bad], block.bn1.bias[bad] = 1e-3, -1.0
                block.conv2.weight[:, bad] *= 1e-3
                useless[f"{path}.conv1"] = bad
    share = sum(int(b.sum()) for b in useless.values()) / 336
    data = open_data("synthetic", Options(train_batch=16, subset=48, image_size=16))
    chosen = METHODS[name](Settings(), **FEW.get(name, {}))
    optim = Optim(LearningRate(1e-3, policy="fixed", warmup=0), precision="f32")
    outcome = run(model, chosen, data, Budget(share, 0, 2), 0, graph=graph, optim=optim)
    kept = {name: index for name, index in outcome.kept.items() if name in useless}
    assert len(kept) == 9
    wrong = sum(int(useless[path][index].sum()) for path, index in kept.items())
    # layers that have a floor, or the same share to lose as others, keep some
    assert wrong <= 0.2 * sum(int(b.sum()) for b in useless.values())


def test_copies_are_compared_in_what_they_compute():
    """The helper above: what is removed changes the outputs of a network that has not been trained for it."""
    model, graph, x, _ = small()
    chosen = METHODS["l1"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    assert removed(copy.deepcopy(model), graph, units, METHODS["l1"](BY_MACS), x, 0.5) > 1e-2


@pytest.mark.parametrize("name", ["snapshots", "movement", "soft_movement", "c2s2"])
def test_what_follows_its_own_directions_has_no_momentum_and_no_decay(name):
    """Adam's directions, and gates' slopes, are followed as they are; momentum would remember other layers' turns."""
    model, graph, x = traced("resnet20")
    chosen = METHODS[name](Settings())
    chosen.pressure.attach(model, graph, chosen.granularity.split(model, graph, x[:1]), plan())
    (group,) = chosen.pressure.parameter_groups(model)
    assert (group.momentum, group.nesterov, group.weight_decay) == (0.0, False, 0.0)
    named = dict(model.named_parameters())
    own = [n for n in named if n.partition(".")[0] in ("movement", "selection")] or list(named)
    assert list(group.names) == own
