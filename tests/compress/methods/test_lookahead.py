import pytest
import torch
from torch import nn

from kerf.compress.methods import METHODS
from kerf.compress.methods.lookahead import Lookahead
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import Weight


def chain(*weights: list) -> nn.Sequential:
    """Linear layers behind an identity, which is a stem, and whose rows have norm 1."""
    matrices = [torch.eye(len(weights[0][0])), *(torch.tensor(w) for w in weights)]
    model = nn.Sequential(*(nn.Linear(m.shape[1], m.shape[0], bias=False) for m in matrices)).double().eval()
    with torch.no_grad():
        for layer, matrix in zip(model, matrices):
            layer.weight.copy_(matrix)
    return model


def scored(model: nn.Module, example: torch.Tensor, batch_norm: bool = False) -> dict[str, torch.Tensor]:
    graph = DependencyGraph.trace(model, example)
    units = Weight(full=True).split(model, graph, example)
    ahead = Lookahead(batch_norm)
    with torch.no_grad():
        ahead.observe(model, graph, units, lambda: iter(()))
    return {u.path: ahead.score(u).view(u.shape) for u in units}


def test_the_score_is_what_deleting_a_weight_does_to_the_product():
    """Norms of rows 5, 9 and of columns 4, 1."""
    one, two, three = [[1.0, 2.0], [3.0, 0.0]], [[1.0, -1.0], [1.5, 0.5]], [[2.0, 1.0]]
    found = scored(chain(one, two, three), torch.zeros(1, 2, dtype=torch.double))
    assert found["1.weight"].tolist() == [[3.25, 13.0], [11.25, 0.0]]
    assert found["2.weight"].tolist() == [[20.0, 36.0], [11.25, 2.25]]
    assert found["3.weight"].tolist() == [[8.0, 2.5]]
    a, b, c = (torch.tensor(w) for w in (one, two, three))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        without = b.clone()
        without[i, j] = 0
        assert float((c @ b @ a - c @ without @ a).square().sum()) == pytest.approx(float(found["2.weight"][i, j]))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    return model.double().eval()


@pytest.mark.parametrize("at", [0, 2, 4, 6])
def test_scaling_a_layer_and_the_next_one_back_changes_no_score_of_either(at):
    """Through depthwise filters and a flatten too. Those behind the next one do see that its norm changes."""
    model, example = small(), torch.zeros(1, 3, 9, 9, dtype=torch.double)
    before = scored(model, example)
    with torch.no_grad():
        model[at].weight.mul_(3.0)
        behind = next(i for i in range(at + 1, len(model)) if hasattr(model[i], "weight"))
        model[behind].weight.div_(3.0)
    after = scored(model, example)
    for path in {f"{at}.weight", f"{behind}.weight"} & set(after):
        assert torch.allclose(after[path], before[path], rtol=1e-9), path


def test_batch_norms_count_as_part_of_the_layer_before_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)).double().eval()
    example = torch.zeros(1, 3, 4, 4, dtype=torch.double)
    plain = scored(model, example)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([2.0, 1, 1, 1, 1]) * (1 + model[2].eps) ** 0.5)
    found = scored(model, example, batch_norm=True)
    ratio = torch.tensor([4.0, 1, 1, 1, 1], dtype=torch.double)
    assert torch.allclose(found["1.weight"], plain["1.weight"] * ratio.view(-1, 1, 1, 1))
    assert torch.allclose(found["3.weight"], plain["3.weight"] * ratio.view(1, -1, 1, 1))


def test_it_keeps_another_weight_than_magnitude_does():
    model = chain([[1.0, 2.0], [3.0, 0.0]], [[1.0, -1.0], [1.5, 0.5]], [[2.0, 1.0]]).float()
    example = torch.zeros(1, 2)
    graph = DependencyGraph.trace(model, example)
    prune(model, METHODS["lookahead"](Settings(full=True)), graph, example, 0.5)
    assert model[2].weight.tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_forward_sees_what_the_layers_before_have_lost():
    """By hand: W1 loses 0 and 3.25, so that its rows' norms are 4 and 9, and W2's second column is worth 9."""
    one, two, three = [[1.0, 2.0], [3.0, 0.0]], [[1.0, -1.0], [1.5, 0.5]], [[2.0, 1.0]]
    model, example = chain(one, two, three), torch.zeros(1, 2, dtype=torch.double)
    graph = DependencyGraph.trace(model, example)
    units = Weight(full=True).split(model, graph, example)
    before = [p.detach().clone() for p in model.parameters()]
    ahead = Lookahead(False)
    ahead.observe(model, graph, units, lambda: iter(()))
    keep = ahead.forward([], units, 0.5)
    assert keep[0].tolist() == [False, True, True, False]
    # rows of W1 are now (0, 2) and (3, 0): 4 and 9; W2 scores 1·4·4, 1·9·4, 2.25·4·1, 0.25·9·1
    assert keep[1].tolist() == [True, True, False, False]
    assert ahead.factors["2.weight"][1].tolist() == [4.0, 9.0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert METHODS["lookahead"](Settings(), order="forward").scope.__name__ == "forward"


def test_rows_count_by_how_often_their_channels_are_active():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)).double()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([9.0, -9.0, 0.0, 0.0, 0.0]))  # always, never
        model[2].weight[3:] *= 0.01
    x = torch.rand(6, 3, 4, 4, dtype=torch.double)
    graph = DependencyGraph.trace(model, x[:1])
    units = Weight().split(model, graph, x[:1])
    found = {}
    for shown in (0, 6):
        ahead = Lookahead(False, shown)
        with torch.no_grad():
            ahead.observe(model, graph, units, lambda: iter([(x, torch.zeros(6))]))
            found[shown] = {u.path: ahead.score(u).view(u.shape) for u in units}
    with torch.no_grad():
        rates = [model[: i + 1](x).ne(0).double().mean((0, 2, 3)) for i in (1, 3)]
    assert rates[1].tolist()[:2] == [1, 0]
    # of a layer: its own rows' rate, and that of the rows before it; the last one's rows are read by none
    wanted = found[0]["2.weight"] * rates[1][:, None, None, None] * rates[0][None, :, None, None]
    assert torch.allclose(found[6]["2.weight"], wanted)
    assert torch.allclose(found[6]["4.weight"], found[0]["4.weight"] * rates[1][None, :, None, None])


@pytest.mark.parametrize("own", [{"order": "odd"}, {"activation": 1, "shown": 0}])
def test_numbers_that_make_no_sense_are_refused(own):
    with pytest.raises(ValueError, match="expected"):
        METHODS["lookahead"](Settings(), **own)
