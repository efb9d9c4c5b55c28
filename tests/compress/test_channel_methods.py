"""Channel methods: attach ≡ plain, fold ≡ trained, exact targets, resume; over every architecture a method takes."""

import copy

import pytest
import torch
from random_networks import difference, images, randomise
from torch import nn

from compress import cost, recipe, removal, surgery
from compress.channel_units import Channel
from compress.data import Options, open_data
from compress.graph import DependencyGraph
from compress.learning_rate import LearningRate
from compress.methods import METHODS
from compress.methods.csgd import CLUSTERINGS, _Segments
from compress.methods.dmcp import Chain, MarkovGates, macs_loss
from compress.models import MODELS, create
from compress.pressure import Plan, Pressure
from compress.recipe import Settings
from compress.run import run
from compress.schedules import Budget
from compress.train import Optim

BY_MACS = Settings(by_macs=True)
LARGE = {"resnet50", "resnet56", "resnet56_projection", "resnet110", "resnet110_projection", "mobilenet_v3_large"}
ARCHS = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in MODELS]


def is_channel(name: str) -> bool:
    return isinstance(METHODS[name](BY_MACS).granularity, Channel)


CHANNEL = [name for name in METHODS if is_channel(name)]
TAKEN = {("resrep", "densenet40"): False}  # what a method refuses


def traced(arch: str) -> tuple[nn.Module, DependencyGraph, torch.Tensor]:
    model = randomise(create(arch, 10, 32), 3, 32, 32)
    x = images(2, 3, 32, 32)
    return model, DependencyGraph.trace(model, x[:1]), x


def plan(sparsity: float = 0.5, steps: int = 100) -> Plan:
    return Plan(steps, lambda _: 0.01, sparsity)


def attached(name: str, arch: str, **own):
    model, graph, x = traced(arch)
    chosen = METHODS[name](Settings(by_macs=True, residual=True), **own)
    units = chosen.granularity.split(model, graph, x[:1])
    with torch.no_grad():
        before = model(x)
    chosen.pressure.attach(model, graph, units, plan())
    model.double().eval()
    return model, graph, units, chosen, x, before


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["resrep", "dmcp"])  # the others add nothing to the network
def test_attaching_changes_no_output(name, arch):
    """rni is not here: its header says that attaching changes the function."""
    if not TAKEN.get((name, arch), True):
        pytest.skip("refused")
    model, _, _, chosen, x, before = attached(name, arch)
    with torch.no_grad():
        assert difference(before, model(x)) < 1e-6  # identities and ones, stored in f32
    names = set(model.state_dict())
    chosen.pressure.fold(model)
    assert "compactors" not in " ".join(model.state_dict())
    assert len(model.state_dict()) <= len(names)


@pytest.mark.parametrize("arch", [a for a in ARCHS if a != "densenet40"])
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
        removed = chosen.remove(model, graph, units, keep, x)
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
        chosen.remove(model, graph, units, [torch.ones(u.count, dtype=torch.bool) for u in units], x)
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


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(x), 4).view(-1, 128))


def test_code_that_counts_channels_is_found_out_before_training():
    model = Viewed().eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match="Viewed does not run with fewer channels: shape"):
        recipe.check(model, METHODS["l1"](BY_MACS), graph, torch.zeros(1, 3, 12, 12), 0.5)


def test_dmcp_narrow_networks_are_the_cut_ones_behind_depthwise_layers_too():
    model, graph, x = traced("mobilenet_v2_x0_5")
    chosen = METHODS["dmcp"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    pressure.attach(model, graph, units, plan(0.5))
    pressure.mode = {id(alpha): chain.least for alpha, chain in zip(pressure.alphas, pressure.chains)}
    with torch.no_grad():
        masked = model.eval()(x)
        pressure.fold(model)
        surgery.cut(model, graph, {u.path: torch.arange(u.count) < c.least for u, c in zip(units, pressure.chains)})
        assert difference(masked, model(x)) < 1e-6


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
        chosen.remove(model, graph, units, [torch.tensor([True, False])], x)
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


def test_cluster_means_are_those_of_the_matrix_form():
    """G' = Γ G + Λ W of the paper, without its D×D matrices."""
    first = torch.tensor([0, 1, 0, 3, 1, 0])
    w, g = torch.randn(6, 5), torch.randn(6, 5)
    together = first[:, None] == first[None, :]
    share = together / together.sum(1, keepdim=True)
    epsilon = 0.05
    wanted = share @ g + epsilon * (torch.eye(6) - share) @ w
    assert torch.allclose(_Segments(first, w).centripetal(w, g, epsilon), wanted, atol=1e-6)
    assert _Segments(torch.arange(6), w).centripetal(w, g, epsilon) is g  # nothing is merged: ordinary SGD


def test_differences_within_a_cluster_shrink_by_themselves():
    """Δ ← (1 − τ ε) Δ, whatever the task's gradients are."""
    segments, w = _Segments(torch.tensor([0, 0, 2]), torch.zeros(1)), torch.randn(3, 4)
    apart = w[0] - w[1]
    for _ in range(10):
        w = w - 0.1 * segments.centripetal(w, torch.randn(3, 4), 0.5)
    assert torch.allclose(w[0] - w[1], (1 - 0.1 * 0.5) ** 10 * apart, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("name", CLUSTERINGS)
def test_clusterings_give_as_many_clusters_as_asked(name, count):
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    rows[3:6] = rows[3]  # equal filters
    assert len(CLUSTERINGS[name](rows, count, 0).unique()) == count


@pytest.mark.parametrize("arch", ARCHS)
def test_trimming_equal_clusters_keeps_the_function(arch):
    model, graph, units, chosen, x, _ = attached("csgd", arch, clusters="even")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for unit in units:  # what a long training ends in
            into = chosen.pressure.into[unit.path]
            for (path, axis), owner in unit.channels.places.items():
                if axis == 0:
                    copies = [(owner == i).nonzero().flatten() for i in range(unit.count)]
                    for i, j in enumerate(into.tolist()):
                        tensors[path][copies[i]] = tensors[path][copies[j]]
        assert max(chosen.pressure.deviation(model).values()) < 1e-9
        before = model(x)
        keep = chosen.scope([u.sizes.float() for u in units], units, 0.5)
        chosen.remove(model, graph, units, keep, x)
        assert difference(before, model(x)) < 1e-9


# card 1 of the method cards: (0.1, 1.0, 0.1)
def test_dmcp_numbers():
    chain = Chain(64)
    assert (chain.each, chain.groups, chain.least) == (6, 9, 10)
    alpha = torch.zeros(9, requires_grad=True)
    expected = chain.expected(alpha)
    expected.backward()
    assert expected.item() == pytest.approx(15.98828125)
    assert float(alpha.grad[0]) == pytest.approx(2.994140625)
    assert float(alpha.grad[8]) == pytest.approx(0.005859375)
    small = Chain(10)
    assert (small.each, small.groups, small.least) == (1, 9, 1)
    assert float(small.expected(torch.zeros(9))) == pytest.approx(1.998046875)


def test_dmcp_macs_loss():
    macs = torch.tensor(1500.0, requires_grad=True)
    loss = macs_loss(macs, 1000.0, 0.1)
    loss.backward()
    assert float(loss) == pytest.approx(0.400733, abs=1e-6)
    assert float(macs.grad) == pytest.approx(1.81818e-4, rel=1e-4)
    macs = torch.tensor(900.0, requires_grad=True)
    loss = macs_loss(macs, 1000.0, 0.1)
    loss.backward()
    assert float(loss) == pytest.approx(0.460517, abs=1e-6)
    assert float(macs.grad) == pytest.approx(-1e-3, rel=1e-4)
    macs = torch.tensor(970.0, requires_grad=True)
    loss = macs_loss(macs, 1000.0, 0.1)
    loss.backward()
    assert float(loss) == 0
    assert float(macs.grad) == 0


def test_dmcp_samples_average_to_the_expectation():
    torch.manual_seed(0)
    chain, alpha = Chain(64), torch.linspace(1, -1, 9)
    drawn = [chain.sample(alpha) for _ in range(4000)]
    assert set(drawn) <= {10 + 6 * k for k in range(10)}
    assert sum(drawn) / len(drawn) == pytest.approx(float(chain.expected(alpha)), rel=0.02)


def test_dmcp_expected_macs_are_the_macs_when_all_survive():
    model, graph, x = traced("resnet20")
    chosen = METHODS["dmcp"](BY_MACS)
    units = chosen.granularity.split(model, graph, x[:1])
    pressure = chosen.pressure
    assert isinstance(pressure, MarkovGates)
    pressure.attach(model, graph, units, plan(0.5))
    with torch.no_grad():
        for alpha in pressure.alphas:
            alpha.fill_(50.0)
    assert float(pressure.expected_macs()) == pytest.approx(2000.0, rel=1e-5)  # thousandths of half


def quick(name: str, arch: str, sparsity: float = 0.5, settings: Settings = BY_MACS, **options):
    torch.manual_seed(0)
    model = create(arch, 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    before = cost.count(model, example).macs
    data = open_data("synthetic", Options(train_batch=16, subset=64))
    chosen = METHODS[name](settings)
    recipe.check(model, chosen, graph, example, sparsity)
    outcome = run(
        model, chosen, data, Budget(sparsity, 0, 2), 0,
        graph=graph, optim=Optim(LearningRate(0.02, policy="cos_step", warmup=0)), **options,
    )  # fmt: skip
    return model, outcome, cost.count(model, example).macs / before


MORE = ("mobilenet_v2", "mobilenet_v3_small", "densenet40", "resnet20_projection")


@pytest.mark.parametrize("arch", ["resnet20", *(pytest.param(arch, marks=pytest.mark.slow) for arch in MORE)])
@pytest.mark.parametrize("name", CHANNEL)
def test_the_target_is_met_and_what_is_left_is_plain(name, arch):
    if not TAKEN.get((name, arch), True):
        pytest.skip("refused")
    sparsity = 0.15 if arch == "mobilenet_v3_small" else 0.3
    model, outcome, left = quick(name, arch, sparsity)
    assert left <= 1 - sparsity
    assert left > 1 - sparsity - 0.06
    assert outcome.kept
    fresh = create(arch, 10, 32).eval()
    graph = DependencyGraph.trace(fresh, torch.zeros(1, 3, 32, 32))
    surgery.narrow(fresh, graph, outcome.kept)
    fresh.load_state_dict(model.state_dict())  # the same names, the widths that were recorded
    assert {type(m) for m in model.modules()} == {type(m) for m in fresh.modules()}
    x = images(2, 3, 32, 32).float()
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), fresh(x), rtol=1e-3, atol=1e-4)  # channels last or first


@pytest.mark.parametrize("name", CHANNEL)
def test_a_stopped_run_resumes_to_the_same_end(name, tmp_path):
    class Stop(Exception):
        pass

    def stopping(at: int):
        def on_history(rows: list[dict]) -> None:
            if len(rows) == at:
                raise Stop

        return on_history

    whole, outcome, _ = quick(name, "resnet20")
    file = tmp_path / "last.safetensors"
    for at in (1, 2):  # within the first phase, or at the end of it and in the second
        file.unlink(missing_ok=True)
        with pytest.raises(Stop):
            quick(name, "resnet20", file=file, on_history=stopping(at))
        again, resumed, _ = quick(name, "resnet20", file=file, resume=True)
        assert [row["loss"] for row in resumed.history] == [row["loss"] for row in outcome.history]
        assert {k: v.tolist() for k, v in resumed.kept.items()} == {k: v.tolist() for k, v in outcome.kept.items()}
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


@pytest.mark.parametrize("name", ["l1", "ucs", "slimming", "csgd", "rni"])
def test_a_share_of_channels_can_be_asked_for_instead(name):
    _, outcome, _ = quick(name, "resnet20", 0.5, Settings())
    inner = {n: k for n, k in outcome.kept.items() if n.endswith(".conv1")}
    assert sum(len(k) for k in inner.values()) == 168  # of 3 · (16 + 32 + 64)


@pytest.mark.parametrize("name", CHANNEL)
def test_widths_can_be_rounded_and_floored(name):
    _, outcome, left = quick(name, "resnet20", 0.3, Settings(by_macs=True, round_to=8, min_width=8))
    assert {len(k) % 8 for k in outcome.kept.values()} == {0}
    assert min(len(k) for k in outcome.kept.values()) >= 8
    assert left <= 0.7


@pytest.mark.parametrize("name", CHANNEL)
def test_unreachable_targets_are_refused_before_training(name):
    with pytest.raises(ValueError, match="of the MACs cannot be reached"):
        quick(name, "resnet20", 0.999)


def test_networks_without_such_channels_are_refused():
    with pytest.raises(ValueError, match="DenseNet40 has nothing that this method prunes"):
        quick("resrep", "densenet40")


def test_gradual_pruning_ends_where_one_shot_does():
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    before = cost.count(model, example).macs
    data = open_data("synthetic", Options(train_batch=16, subset=32))
    seen = []
    run(model, METHODS["l1"](BY_MACS), data, Budget(0.5, 0, 3, steps=3), 0, graph=graph,
        on_history=lambda rows: seen.append(cost.count(model, example).macs / before))  # fmt: skip
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == pytest.approx(5 / 6, abs=0.03)
    assert 0.44 < seen[-1] <= 0.5


def test_distillation_adds_the_teachers_answers():
    from compress.train import make_task

    teacher, student = create("resnet20", 10, 32).eval(), create("resnet20", 10, 32).eval()
    x, y = images(4, 3, 32, 32).float(), torch.arange(4)
    cpu = torch.device("cpu")
    plain = make_task(Optim(precision="f32"), cpu)(student, x, y)[0]
    same = make_task(Optim(distill=0.5, precision="f32"), cpu, copy.deepcopy(student))(student, x, y)[0]
    other = make_task(Optim(distill=0.5, precision="f32"), cpu, teacher)(student, x, y)[0]
    assert float(same) == pytest.approx(0.5 * float(plain), rel=1e-4)  # nothing to learn from itself
    assert float(other) > float(same)


def test_removal_says_what_stays():
    assert removal.describe({"a": torch.tensor([True, False]), "b": torch.tensor([True])}) == (
        "2 of 3 channels stay, in 2 layers"
    )
    assert Pressure().report(nn.Identity()) == ""
