"""Every combination of criterion, granularity, schedule and scope: it prunes exactly, or says why it cannot."""

import copy
import itertools

import numpy as np
import pytest
import torch

from kerf.compress import cli
from kerf.compress.command.parsing import parse
from kerf.compress.command.planning import method_of, plan
from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.methods.composed import PARTS, composed
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.train import Optim
from kerf.compress.units.channels import Channel
from kerf.compress.units.weights import OneByN, averaged
from tests.helpers.run_files import BRIEF, read
from tests.helpers.sweeps import sweep

EXAMPLE = torch.zeros(1, 3, 32, 32)
DATA = [(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4))]
SETTINGS = Settings(n=4)
GRID = list(itertools.product(PARTS["criterion"], PARTS["granularity"], PARTS["schedule"], PARTS["scope"]))


def fits(criterion, granularity, schedule, scope) -> bool:
    """Written out a second time, by what the parts are."""
    of_channels = criterion in ("bn_scale", "rank", "spectral_tail")
    of_weights = criterion in ("lookahead", "fisher", "hutchinson")
    if (granularity == "channel" and of_weights) or (granularity != "channel" and of_channels):
        return False
    if criterion == "rank" and scope == "global":
        return False
    return schedule != "annealed" or criterion in ("l1", "l2", "bn_scale")


SIZES = {"l1": np.abs, "l2": np.square}  # by numpy, of weights as they lie in the network


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("granularity", ["weight", "filter", "1xN"])
@pytest.mark.parametrize("criterion", SIZES)
def test_the_smallest_units_go(network, criterion, granularity, scope):
    model, graph = copy.deepcopy(network[0]), network[1]
    recipe = composed(SETTINGS, criterion=criterion, granularity=granularity, scope=scope)
    before = {path: p.detach().numpy().copy() for path, p in model.named_parameters()}
    masks = prune(model, recipe, graph, EXAMPLE, 0.5, lambda: iter(DATA)).masks
    kept, gone = [], []
    for path, mask in masks.items():
        values, zero = SIZES[criterion](before[path]), ~mask.numpy()
        axes = {"weight": (), "filter": (1, 2, 3), "1xN": (1, 3, 4)}[granularity]
        if granularity == "1xN":
            values, zero = (a.reshape(len(a) // 4, 4, *a.shape[1:]) for a in (values, zero))
        size, out = values.mean(axis=axes).ravel(), zero.all(axis=axes).ravel()
        assert scope == "global" or size[out].max() <= size[~out].min()
        if (~out).sum() > 1:  # the last of a layer stays whatever it is
            kept.append(size[~out].min())
        gone.append(size[out].max() if out.any() else 0.0)
    if scope == "global":
        assert max(gone) <= min(kept) * (1 + 1e-5)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    return model, DependencyGraph.trace(model, EXAMPLE)


def parts(combination) -> dict[str, str]:
    return dict(zip(("criterion", "granularity", "schedule", "scope"), combination))


AT_ONCE = [c for c in GRID if not fits(*c) or c[2] == "one_shot"]  # refusals take no time


@pytest.mark.parametrize("combination", sweep(GRID, quick=AT_ONCE), ids="-".join)
def test_it_removes_what_was_asked_or_says_why_not(network, combination):
    if not fits(*combination):
        with pytest.raises(ValueError, match=r"criterion|schedule") as error:
            composed(SETTINGS, **parts(combination))
        assert "\n" not in str(error.value)
        return
    model, graph = copy.deepcopy(network[0]), network[1]
    recipe = composed(SETTINGS, **parts(combination))
    units = recipe.granularity.split(model, graph, EXAMPLE)
    outcome = prune(model, recipe, graph, EXAMPLE, 0.5, lambda: iter(DATA))
    if isinstance(recipe.granularity, Channel):
        left = sum(int(outcome.kept[u.path].sum()) for u in units)
        assert abs(left - sum(u.count for u in units) / 2) <= (len(units) if combination[3] == "local" else 1)
    else:
        kept = [averaged(u, outcome.masks[u.path].float().flatten()).round(decimals=5) for u in units]
        assert all(bool(((k == 0) | (k == 1)).all()) for k in kept)  # whole units
        counts = [u.count for u in units]
        asked = sum(c // 2 for c in counts) if combination[3] == "local" else sum(counts) // 2
        assert sum(int((k == 0).sum()) for k in kept) == asked
        assert all(bool(mask.any()) for mask in outcome.masks.values())
    with torch.no_grad():
        assert model(DATA[0][0]).isfinite().all()


ANNEALED = [c for c in GRID if fits(*c) and c[2] == "annealed"]
EACH_GRANULARITY = [
    ("l1", "weight", "annealed", "local"),
    ("l1", "1xN", "annealed", "global"),
    ("l2", "filter", "annealed", "local"),
    ("bn_scale", "channel", "annealed", "global"),
]


@pytest.mark.parametrize("combination", sweep(ANNEALED, quick=EACH_GRANULARITY), ids="-".join)
def test_an_annealed_one_trains_to_its_share(combination):
    """The run loop itself: the share is met, and a second run gives the same."""
    data = open_data("synthetic", Options(train_batch=8, subset=16))
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = create("resnet20", data.num_classes, 32)
        graph = DependencyGraph.trace(model, EXAMPLE)
        whole = composed(SETTINGS, **parts(combination)).granularity.split(model, graph, EXAMPLE)
        recipe, optim = composed(SETTINGS, **parts(combination)), Optim(LearningRate(0.01))
        outcome = run(model, recipe, data, Budget(0.5, 0, 2), 0, graph=graph, optim=optim)
        found.append((outcome, {n: t.clone() for n, t in model.state_dict().items()}))
    (outcome, first), (_, second) = found
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    if combination[1] == "channel":
        left, of = sum(len(index) for index in outcome.kept.values()), sum(u.count for u in whole)
    else:  # of filters, those of which anything is left
        masks = [m.flatten(1).any(1) if combination[1] == "filter" else m for m in outcome.masks.values()]
        left, of = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
    assert left / of == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "combination"),
    [
        ("one_by_n", ("l1", "1xN", "one_shot", "local")),
        ("weight", ("l1", "weight", "one_shot", "local")),
        ("filter", ("l1", "filter", "one_shot", "local")),
        ("l1", ("l1", "channel", "one_shot", "local")),
        ("ucs", ("bn_scale", "channel", "one_shot", "local")),
        ("hrank", ("rank", "channel", "one_shot", "local")),
        ("ezcrop", ("spectral_tail", "channel", "one_shot", "local")),
        ("lookahead", ("lookahead", "weight", "one_shot", "local")),
        ("hessian", ("fisher", "weight", "one_shot", "global")),
    ],
)
def test_the_tables_methods_are_combinations(network, name, combination):
    tensors = []
    for recipe in (METHODS[name](SETTINGS), composed(SETTINGS, **parts(combination))):
        model = copy.deepcopy(network[0])
        prune(model, recipe, network[1], EXAMPLE, 0.5, lambda: iter(DATA))
        tensors.append(model.state_dict())
    assert all(torch.equal(tensors[0][path], tensors[1][path]) for path in tensors[0])


def test_averages_over_units(network):
    model, graph = network
    unit = OneByN(4).split(model, graph, EXAMPLE)[3]
    expected = unit.rows().abs().sum(1) / unit.sizes
    assert torch.allclose(averaged(unit, unit.weight().abs().flatten()), expected, atol=1e-7)


def test_flags_put_a_method_together_and_refuse_a_second_one(tmp_path):
    args, _ = parse(["--criterion=fisher", "--granularity=1xN", "--N=8", f"--job_dir={tmp_path}"])
    recipe, _ = plan(args, method_of(args), None)
    assert recipe.granularity == OneByN(8)
    args, _ = parse(["--criterion=l1", "--method=resrep", f"--job_dir={tmp_path}"])
    with pytest.raises(ValueError, match="--criterion put a method together: leave --method"):
        method_of(args)
    with pytest.raises(ValueError, match="invalid choice: 'odd'"):
        parse(["--scope=odd"])
    with pytest.raises(ValueError, match="leave one out"):
        composed(Settings(4, rearrange=True), schedule="annealed")


def test_a_small_run_by_flags(tmp_path):
    flags = ["--criterion=fisher", "--granularity=1xN", "--scope=global", "--N=4", "--pr_target=0.5"]
    assert cli.main([*BRIEF, *flags, "--num_epochs=1", "--finetune_epochs=1", f"--job_dir={tmp_path}"]) == 0
    summary = read(tmp_path / "summary.json")
    assert summary["method"] == "composed"
    assert summary["block_density"] == pytest.approx(0.5, abs=0.02)


def test_an_annealed_one_goes_as_fast_as_dsc():
    """Its schedule is that method's, whose numbers can be set there alone."""
    annealing = composed(Settings(), criterion="l1", granularity="weight", schedule="annealed").pressure
    assert {"rounds": annealing.rounds, "mu": annealing.mu} == {k: METHODS["dsc1"].numbers[k] for k in ("rounds", "mu")}
    own = METHODS["dsc1"](Settings()).pressure
    assert (own.rounds, own.mu) == (annealing.rounds, annealing.mu)


@pytest.mark.parametrize(
    ("granularity", "scope", "by_macs", "counted"),
    [
        ("weight", "global", True, True), ("weight", "local", False, False), ("channel", "global", True, False),
        ("channel", "global", False, True), ("channel", "local", False, False),
    ],
)  # fmt: skip
def test_whole_numbers_are_kept_where_units_are_counted(granularity, scope, by_macs, counted):
    parts = {"criterion": "l1", "granularity": granularity, "scope": scope, "schedule": "annealed"}
    assert composed(Settings(by_macs=by_macs), **parts).pressure.counted is counted
