"""Contracts over all channel methods: attach ≡ plain, exact targets, floors, resume, refusals."""

import copy

import pytest
import torch
from torch import nn

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.models import MODELS, create
from kerf.compress.network import cost, surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe, removal
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Pressure
from kerf.compress.training.train import Optim, make_task
from kerf.compress.units.channels import Channel
from tests.helpers.attaching import AT_MOST, BY_MACS, FEW, attached
from tests.helpers.random_networks import difference, images
from tests.helpers.sweeps import sweep


def is_channel(name: str) -> bool:
    return isinstance(METHODS[name](BY_MACS).granularity, Channel)


CHANNEL = [name for name in METHODS if is_channel(name)]
# one of each kind: compactors, clusters that are merged, one shot, step by step, masks while training
KINDS = ("resrep", "csgd", "l1", "gate_decorator", "while_training")


TAKEN = dict.fromkeys(  # what a method refuses
    (("resrep", "densenet40"), ("channel_similarity", "densenet40"), ("bwcp", "densenet40")), False
)


@pytest.mark.parametrize("arch", sweep(MODELS, quick=("resnet20", "mobilenet_v3_small", "densenet40")))
@pytest.mark.parametrize("name", ["resrep", "dmcp", "c2s2"])  # others add nothing, or have a test of their own
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


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(x), 4).view(-1, 128))


def test_code_that_counts_channels_is_found_out_before_training():
    model = Viewed().eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match=r"nothing that this method prunes.* its code counts the channels of conv"):
        recipe.check(model, METHODS["l1"](BY_MACS), graph, torch.zeros(1, 3, 12, 12), 0.5)
    with pytest.raises(ValueError, match="Viewed does not run with fewer channels: shape"):
        recipe.check(model, METHODS["l1"](BY_MACS), graph, torch.zeros(1, 3, 12, 12), 0.5, strict=True)


def quick(name: str, arch: str, sparsity: float = 0.5, settings: Settings = BY_MACS, **options):
    torch.manual_seed(0)
    model = create(arch, 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    before = cost.count(model, example).macs
    data = open_data("synthetic", Options(train_batch=16, subset=64))
    chosen = METHODS[name](settings, **FEW.get(name, {}))
    recipe.check(model, chosen, graph, example, sparsity)
    outcome = run(
        model, chosen, data, Budget(sparsity, 0, 2), 0,
        graph=graph, optim=Optim(LearningRate(0.02, policy="cos_step", warmup=0)), **options,
    )  # fmt: skip
    return model, outcome, cost.count(model, example).macs / before


ZOO = ("resnet20", "mobilenet_v2", "mobilenet_v3_small", "densenet40", "resnet20_projection")


@pytest.mark.parametrize("arch", sweep(ZOO, quick=("resnet20",)))
@pytest.mark.parametrize("name", sweep(CHANNEL, quick=(*KINDS, "dmcp")))
def test_the_target_is_met_and_what_is_left_is_plain(name, arch):
    if not TAKEN.get((name, arch), True):
        pytest.skip("refused")
    sparsity = 0.15 if arch == "mobilenet_v3_small" else 0.3
    model, outcome, left = quick(name, arch, sparsity)
    assert left > 1 - sparsity - 0.06
    if name not in AT_MOST:
        assert left <= 1 - sparsity
        assert outcome.kept
    fresh = create(arch, 10, 32).eval()
    graph = DependencyGraph.trace(fresh, torch.zeros(1, 3, 32, 32))
    surgery.narrow(fresh, graph, outcome.kept)
    fresh.load_state_dict(model.state_dict())  # the same names, the widths that were recorded
    assert {type(m) for m in model.modules()} == {type(m) for m in fresh.modules()}
    x = images(2, 3, 32, 32).float()
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), fresh(x), rtol=1e-3, atol=1e-4)  # channels last or first


@pytest.mark.parametrize("name", sweep(CHANNEL, quick=KINDS[:4]))  # masks: tests/compress/training/test_masking.py
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


SHARES = [name for name in CHANNEL if name not in ("resrep", "dmcp", *AT_MOST)]  # two ask for MACs alone


@pytest.mark.parametrize("name", sweep(SHARES, quick=KINDS[1:]))
def test_a_share_of_channels_can_be_asked_for_instead(name):
    _, outcome, _ = quick(name, "resnet20", 0.5, Settings())
    inner = {n: k for n, k in outcome.kept.items() if n.endswith(".conv1")}
    assert sum(len(k) for k in inner.values()) == 168  # of 3 · (16 + 32 + 64)


@pytest.mark.parametrize("name", sweep([n for n in CHANNEL if n not in AT_MOST], quick=KINDS))
def test_widths_can_be_rounded_and_floored(name):
    _, outcome, left = quick(name, "resnet20", 0.3, Settings(by_macs=True, round_to=8, min_width=8))
    assert {len(k) % 8 for k in outcome.kept.values()} == {0}
    assert min(len(k) for k in outcome.kept.values()) >= 8
    assert left <= 0.7


@pytest.mark.parametrize("name", sweep(CHANNEL, quick=KINDS))
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


@pytest.mark.parametrize("by_macs", [False, True])
@pytest.mark.parametrize("name", sweep(("l1", "channel_similarity"), quick=("l1",)))  # layer by layer, over all layers
def test_steps_count_what_there_was_at_first(name, by_macs):
    """What is left after several steps is as wide, in all, as after one."""
    left = []
    for steps in (1, 4):
        torch.manual_seed(0)
        model = create("resnet20", 10, 32).eval()
        example = torch.zeros(1, 3, 32, 32)
        data = open_data("synthetic", Options(train_batch=16, subset=32))
        chosen = METHODS[name](Settings(by_macs=by_macs), **FEW.get(name, {}))
        outcome = run(model, chosen, data, Budget(0.5, 0, 0, steps=steps), 0,
                      graph=DependencyGraph.trace(model, example))  # fmt: skip
        left.append({layer: len(k) for layer, k in outcome.kept.items()})
    if name == "l1":
        assert left[0] == left[1]
    if not by_macs:
        assert sum(left[1].values()) == sum(left[0].values()) == 168


def test_distillation_adds_the_teachers_answers():
    teacher, student = create("resnet20", 10, 32).eval(), create("resnet20", 10, 32).eval()
    x, y = images(4, 3, 32, 32).float(), torch.arange(4)
    cpu = torch.device("cpu")
    plain = make_task(Optim(precision="f32"), cpu)(student, x, y)[0]
    same = make_task(Optim(distill=0.5, precision="f32"), cpu, [copy.deepcopy(student)])(student, x, y)[0]
    other = make_task(Optim(distill=0.5, precision="f32"), cpu, [teacher])(student, x, y)[0]
    assert float(same) == pytest.approx(0.5 * float(plain), rel=1e-4)  # nothing to learn from itself
    assert float(other) > float(same)


def test_removal_says_what_stays():
    assert removal.describe({"a": torch.tensor([True, False]), "b": torch.tensor([True])}) == (
        "2 of 3 channels stay, in 2 layers"
    )
    assert Pressure().report(nn.Identity()) == ""
