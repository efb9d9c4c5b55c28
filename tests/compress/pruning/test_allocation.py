"""Shares by layer: what they cost, what they reach, and who is refused them."""

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kerf.compress.cli import main
from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import allocation, scopes, sensitivity
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.sensitivity import GRID, share_out
from kerf.compress.pruning.settings import Settings

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = create("resnet20", 10, 32).eval()
    return model, DependencyGraph.trace(model, EXAMPLE), METHODS["one_by_n"](Settings(4, rearrange=True))


@pytest.fixture(scope="module")
def measured(network):
    data = open_data("synthetic", Options(subset=64, eval_batch=32))
    model, graph, recipe = network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = sensitivity.measure(model, recipe, graph, EXAMPLE, data.test, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # a copy was pruned
    return found


def test_one_layer_at_a_time_is_pruned(network, measured):
    model, graph, recipe = network
    assert list(measured.loss) == [u.path for u in recipe.granularity.split(model, graph, EXAMPLE)]
    assert measured.images == 64
    assert all(len(row) == len(measured.levels) for row in measured.loss.values())
    assert any(loss != measured.dense_loss for row in measured.loss.values() for loss in row)


def test_harm_starts_at_nothing_and_never_falls(measured):
    for path in measured.loss:
        harm = measured.harm(path)
        assert harm.shape == (len(GRID),)
        assert harm[0] == 0
        assert (harm.diff() >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_shares_reach_the_target_at_nearly_the_least_harm(seed):
    draw = torch.Generator().manual_seed(seed)
    harm: dict[str, Tensor] = {}
    saved: dict[str, Tensor] = {}
    for name in "abc":
        steps = torch.rand(len(GRID), generator=draw, dtype=torch.float64)
        harm[name] = torch.cat([torch.zeros(1), (steps[1:] * torch.arange(1, len(GRID))).cumsum(0)])
        saved[name] = torch.tensor(GRID, dtype=torch.float64) * (1 + 3 * float(torch.rand(1, generator=draw)))
    target = 0.6 * float(sum(s.max() for s in saved.values()))
    at = share_out(harm, saved, target)
    assert sum(saved[n][i] for n, i in at.items()) >= target
    spent = float(sum(harm[n][i] for n, i in at.items()))
    every = itertools.product(range(len(GRID)), repeat=3)
    least = min(
        float(sum(harm[n][i] for n, i in zip("abc", choice)))
        for choice in every
        if sum(saved[n][i] for n, i in zip("abc", choice)) >= target
    )
    assert spent <= 1.1 * least
    with pytest.raises(ValueError, match="cannot be saved"):
        share_out(harm, saved, 2 * target)


def test_layers_that_hurt_less_lose_more_and_the_macs_are_met(network, measured):
    model, graph, recipe = network
    units = recipe.granularity.split(model, graph, EXAMPLE)
    made = allocation.by_macs(units, measured, 0.5)
    assert made.removed == pytest.approx(0.5, abs=0.02)
    assert made.removed >= 0.5
    assert len(set(made.shares.values())) > 1
    keep = scopes.allotted(made.shares, made.removed)([recipe.criterion(u) for u in units], units, made.removed)
    for unit, kept in zip(units, keep):
        assert int((~kept).sum()) == int(unit.count * made.shares[unit.path] + 1e-6)


class Watch:
    """A machine on which every zero weight saves the same time, and layers timed alone promise too much."""

    shares = (0.5, 0.9)

    def __init__(self, model):
        self.total = sum(p.numel() for p in model.parameters())

    def network_ms(self, path):
        zeros = json.loads(path.read_text())["zeros"]
        return 10 * (1 - 0.8 * zeros / self.total), 12.0, "rival"

    def layers_us(self, path, layers, n):
        sizes = json.loads(path.read_text())["sizes"]
        return {l: tuple(1e4 * sizes[l] / self.total * (1 - s) for s in (0, *self.shares)) for l in layers}


def write(model, example, path):
    parameters = {n.removesuffix(".weight"): p for n, p in model.named_parameters()}
    sizes = {n: p.numel() for n, p in parameters.items()}
    path.write_text(json.dumps({"zeros": sum(int((p == 0).sum()) for p in parameters.values()), "sizes": sizes}))


def by_time(network, measured, **target):
    model, graph, recipe = network
    target = {"target_ms": None, "speedup": None, **target}
    networks = allocation.Modules(model, recipe, graph, EXAMPLE, write)
    return allocation.by_time(networks, measured, Watch(model), say=lambda _: None, **target)


@pytest.mark.parametrize("target", [{"target_ms": 7.0}, {"speedup": 2.0}])
def test_a_time_is_met_by_building_and_correcting(network, measured, target):
    made = by_time(network, {4: measured}, **target)
    goal = target.get("target_ms", 6.0)
    assert made.target_ms == pytest.approx(goal)
    assert made.latency_ms == pytest.approx(goal, rel=0.05)
    model, graph, recipe = network
    pruned = copy.deepcopy(model)
    masks = prune(pruned, made.recipe(recipe), graph, EXAMPLE, made.removed).masks
    assert len(masks) == len(made.shares)


def test_every_layer_takes_the_n_that_harms_least(network, measured):
    """1×8 does half the harm of 1×4 in every other layer, and twice the harm in the rest."""
    model, graph, recipe = network

    def times(factor, row):
        return tuple(measured.dense_loss + factor * max(0.0, loss - measured.dense_loss) for loss in row)

    gentle = [path for i, path in enumerate(measured.loss) if i % 2]
    loss = {path: times(0.5 if path in gentle else 2, row) for path, row in measured.loss.items()}
    found = by_time(network, {4: measured, 8: replace(measured, loss=loss)}, target_ms=7.0)
    felt = [path for path, share in found.shares.items() if share and float(measured.harm(path)[-1]) > 0]
    assert {path in gentle for path in felt} == {True, False}
    assert all(found.heights[path] == (8 if path in gentle else 4) for path in felt)
    pruned = copy.deepcopy(model)
    masks = prune(pruned, found.recipe(recipe), graph, EXAMPLE, found.removed).masks
    for path, n in found.heights.items():
        blocks = masks[path].unfold(0, n, n).flatten(2)  # widths of ResNet-20 are multiples of 16
        assert bool((blocks.all(2) | ~blocks.any(2)).all()), path


def test_a_time_that_cannot_be_met_says_what_can(network, measured):
    with pytest.raises(ValueError, match=r"1 ms cannot be met: the nearest network found takes 2\.\d+ ms \("):
        by_time(network, {4: measured}, target_ms=1.0)
    with pytest.raises(ValueError, match="no need to prune"):
        by_time(network, {4: measured}, target_ms=11.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--speedup_target=2"], ["--pretrained_model"]),
        (["--allocate=sensitivity"], ["--pretrained_model"]),
        (["--speedup_target=2", "--latency_target_ms=3"], ["--speedup_target", "--latency_target_ms", "one"]),
        (["--speedup_target=2", "--pr_target=0.5"], ["--pr_target", "--speedup_target", "one"]),
        (["--latency_target_ms=0"], ["--latency_target_ms", "positive"]),
        (["--allocate=sensitivity", "--method=resrep"], ["resrep", "one_by_n"]),
        (["--speedup_target=2", "--method=weight", "--pretrained_model=W"], ["weight", "1xN"]),
        (["--allocate=fair"], ["--allocate", "sensitivity"]),
        (["--N_choices", "4", "8"], ["--N_choices", "--speedup_target"]),
        (["--N_choices", "4", "4", "--speedup_target=2"], ["4 4", "different"]),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    if "--pretrained_model=W" in flags:
        from kerf.compress.training import checkpoint

        checkpoint.save(tmp_path / "w.safetensors", create("resnet20", 10, 32).state_dict())
        flags = [f.replace("=W", "=w.safetensors") for f in flags]
    assert main(["--data_set=synthetic", "--arch=resnet20", "--subset=32", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "experiments").exists()


def test_an_allocated_run_and_the_command_that_shows_sensitivities(tmp_path, capsys):
    from kerf.compress.training import checkpoint

    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    checkpoint.save(weights, create("resnet20", 10, 32).state_dict())
    common = ["--data_set=synthetic", "--arch=resnet20", "--subset=32", "--N=4", f"--pretrained_model={weights}"]
    common += ["--train_batch_size=8", "--calibration=16", "--device=cpu"]
    job = tmp_path / "job"
    assert main([*common, "--allocate=sensitivity", "--pr_target=0.6", "--finetune_epochs=1", f"--job_dir={job}"]) == 0
    made = json.loads((job / "allocation.json").read_text())
    summary = json.loads((job / "summary.json").read_text())
    assert made["removed"] == pytest.approx(0.6, abs=0.03)
    assert summary["macs"] < 0.5 * summary["macs_dense"]
    assert (job / "sensitivity.svg").read_text().startswith("<svg")
    capsys.readouterr()
    assert main(["sensitivity", *common, f"--job_dir={tmp_path / 's'}"]) == 0
    assert "90% removed" in capsys.readouterr().out
    assert (tmp_path / "s" / "sensitivity.json").is_file()
