"""Methods that cut while they train: the network gets smaller on the way, and computes what the masked one would."""

import copy

import pytest
import torch

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network import narrowing
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import run as running
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.train import Optim
from tests.helpers.attaching import traced
from tests.helpers.run_files import in_double, killed_after
from tests.helpers.sweeps import sweep

# the method, and numbers with which it cuts more than once in four epochs of four steps
CUTTING = {
    "while_training": {"start": 0.0},
    "frs": {"images": 16, "events": 3},
    "dsc2": {"rounds": 12, "mu": 1.0},
}


@pytest.fixture(scope="module")
def data():
    return open_data("synthetic", Options(train_batch=8, subset=32, image_size=16))


def pruned(name, data, **more):
    """The outcome, and the network's size after every epoch."""
    torch.manual_seed(0)
    model = create("resnet20", 10, 16).eval()
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, 16, 16))
    sizes: list[int] = []

    def count(_):
        sizes.append(sum(p.numel() for p in model.parameters()))

    chosen = METHODS[name](Settings(), **CUTTING[name])
    optim = Optim(LearningRate(0.02, warmup=0), nesterov=True, precision="f32")
    outcome = run(model, chosen, data, Budget(0.5, 0, 4), 0, graph=graph, optim=optim, on_history=count, **more)
    return outcome, sizes, model


def losses(outcome):
    return [(row["phase"], row["epoch"], row["loss"], row["val_loss"]) for row in outcome.history]


@pytest.mark.parametrize("name", CUTTING)
def test_the_network_gets_smaller_while_it_trains(name, data):
    with in_double():
        outcome, sizes, model = pruned(name, data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running._Run, "_cut", None)  # a loop that cannot: channels are masked
            masked, whole, plain = pruned(name, data)
    assert whole[0] == whole[1]  # until the phase ends, whose masks are then cut
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    assert sizes[0] < whole[0] or name == "frs"  # whose first event is at the end of a later epoch
    assert sizes[-1] == sum(p.numel() for p in model.parameters())
    for ours, theirs in zip(losses(outcome), losses(masked), strict=True):
        assert ours == (*theirs[:2], pytest.approx(theirs[2]), pytest.approx(theirs[3]))
    assert outcome.kept.keys() == masked.kept.keys()
    assert all(torch.equal(kept, masked.kept[path]) for path, kept in outcome.kept.items())
    for (path, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7), path


@pytest.mark.parametrize("name", sweep(CUTTING, quick=("while_training",)))
def test_a_stopped_run_goes_on_with_what_is_left(name, data, tmp_path):
    with in_double():
        wanted, _, model = pruned(name, data)
        file = tmp_path / "last.safetensors"
        with pytest.raises(KeyboardInterrupt), killed_after(14):
            pruned(name, data, file=file)
        found, _, again = pruned(name, data, file=file, resume=True)
    assert losses(found) == losses(wanted)
    for (path, ours), theirs in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(ours, theirs[1]), path


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v3_small"])
def test_momentum_is_cut_as_the_weights_are(arch):
    """Where it is a multiple of them before, it is one after, in the order of the optimiser's groups."""
    model, graph, _ = traced(arch)
    few, *rest = model.parameters()
    sgd = torch.optim.SGD([{"params": [few], "lr": 0.5}, {"params": rest}], lr=0.1, momentum=0.9)
    for p in rest:
        sgd.state[p]["momentum_buffer"] = 3 * p.detach()
    random = torch.Generator().manual_seed(0)
    keep = {s.name: torch.rand(s.width, generator=random) < 0.7 for s in graph.sets if not s.fixed}
    for kept in keep.values():
        kept[0] = True
    wanted = copy.deepcopy(model)
    narrowing.cut(model, graph, keep, sgd)
    assert [id(p) for g in sgd.param_groups for p in g["params"]] == [id(p) for p in model.parameters()]
    assert "momentum_buffer" not in sgd.state[sgd.param_groups[0]["params"][0]]
    assert all(torch.equal(sgd.state[p]["momentum_buffer"], 3 * p) for p in sgd.param_groups[1]["params"])
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in wanted.parameters())
    sgd.zero_grad()
    model(torch.zeros(2, 3, 32, 32, dtype=torch.double)).sum().backward()
    sgd.step()
