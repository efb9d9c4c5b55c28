"""DRL: an example worked by hand, the agent, the widths that it ends with."""

import copy

import pytest
import torch

from kerf.compress.measures import least_squares
from kerf.compress.methods import METHODS
from kerf.compress.methods.drl import ddpg
from kerf.compress.methods.drl.bit_widths import action_of, bits_of
from kerf.compress.methods.drl.drl import REWARDS, WidthWalk, accuracy, kept_width, wall
from kerf.compress.methods.drl.layer_features import constant, state
from kerf.compress.network.watching import evaluated
from kerf.compress.pruning import recipe, removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.masking import ChannelMasks
from kerf.compress.training.pressure import Plan
from kerf.compress.training.sample import Shown
from tests.helpers.attaching import BY_MACS, FEW, traced
from tests.helpers.random_networks import difference


# worked by hand from arXiv 1912.02254
def test_drl_numbers():
    assert REWARDS["macs"](0.92, 1e8) == pytest.approx(-1.473654, abs=1e-6)
    assert REWARDS["accuracy"](0.92, 1e8) == 0.92
    assert kept_width(0.31, 100, 8) == 32
    assert kept_width(0.9, 12, 8) == 8
    assert kept_width(0.31, 100, 1) == 31
    assert kept_width(0.01, 12, 1) == 1
    assert wall(1.0, budget=60, other=40, this=100) == pytest.approx(0.2)
    assert wall(1.0, budget=90, other=40, this=100) == pytest.approx(0.5)
    assert wall(0.3, budget=90, other=40, this=100) == 0.3
    assert wall(0.9, budget=30, other=40, this=100) == 0.2  # the lowest share goes before the budget


def test_noise_stays_within_actions_and_dies_out():
    random = torch.Generator().manual_seed(0)
    drawn = torch.tensor([ddpg.truncated_normal(0.9, 0.5, random) for _ in range(4000)])
    assert 0 <= drawn.min() < 0.05
    assert 0.99 < drawn.max() <= 1
    # of N(μ, σ²) on [a, b]: μ + σ (φ(α) − φ(β)) / (Φ(β) − Φ(α))
    assert float(drawn.mean()) == pytest.approx(0.6128, abs=0.015)
    assert ddpg.truncated_normal(0.9, 1e-9, random) == 0.9
    numbers = ddpg.Numbers(800, 100, 0.95, 100)
    assert numbers.sigma(99) is None
    assert numbers.sigma(100) == 0.5
    assert numbers.sigma(110) == pytest.approx(0.5 * 0.95**10)


class Target:
    """A walk whose best actions are known: a different one for each layer, which the state tells apart."""

    layers, even = 3, 0.6
    wanted = (0.2, 0.8, 0.5)

    def state(self, actions):
        return torch.nn.functional.one_hot(torch.tensor(min(len(actions), 2)), 3).float()

    def allowed(self, actions, action):
        return max(action, 0.1)

    def __init__(self):
        self.rewards = []

    def reward(self, actions):
        self.rewards.append(-sum((a - w) ** 2 for a, w in zip(actions, self.wanted)))
        return self.rewards[-1], actions


def test_the_agent_learns_and_repeats_itself():
    numbers, walk = ddpg.Numbers(200, 50, 0.95, 100), Target()
    actions, reward = ddpg.search(walk, numbers, seed=0)
    assert min(actions) >= 0.1
    assert reward == max(walk.rewards)
    assert walk.rewards[0] == -sum((0.6 - w) ** 2 for w in walk.wanted)
    assert ddpg.search(Target(), ddpg.Numbers(1, 0, 0.95, 100), seed=0) == ([0.6] * 3, walk.rewards[0])
    at_random, in_the_end = (torch.tensor(part).mean() for part in (walk.rewards[:50], walk.rewards[-30:]))
    assert in_the_end > at_random / 4
    state = torch.get_rng_state()
    assert ddpg.search(Target(), numbers, seed=0) == (actions, reward)
    assert torch.equal(state, torch.get_rng_state())  # what others draw does not depend on it
    assert ddpg.search(Target(), numbers, seed=1) != (actions, reward)


def test_least_squares_of_everything_changes_nothing_and_of_copies_everything_needed():
    model, graph, _ = traced("mobilenet_v2_x0_5")
    data = [(torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.double), None)]
    name = "features.3.conv.0.0"
    sigma = least_squares.moments(model, graph, [name], data)
    assert list(sigma) == ["features.3.conv.2.weight"]  # behind the depthwise filter
    before = copy.deepcopy(model.state_dict())
    keep = torch.ones(len(model.get_parameter(f"{name}.weight")), dtype=torch.bool)
    least_squares.refit(model, graph, {name: keep}, sigma)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    # inputs that are combinations of those that stay are made up for in full
    path, moment = next(iter(sigma.items()))
    weight = model.get_parameter(path)
    mixing = torch.randn(len(keep), len(keep) - 4, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    mixing[: len(keep) - 4] = torch.eye(len(keep) - 4)
    keep[-4:] = False
    exact = weight.detach().flatten(1) @ mixing
    base = torch.eye(len(keep) - 4, dtype=torch.double)
    least_squares.refit(model, graph, {name: keep}, {path: mixing @ base @ mixing.T})
    assert torch.allclose(weight.detach().flatten(1)[:, :-4], exact, rtol=1e-4, atol=1e-4)
    assert moment.shape == (len(keep), len(keep))


def shown(images: int = 8) -> Shown:
    random = torch.Generator().manual_seed(3)
    parts = [
        (torch.randn(images, 3, 32, 32, generator=random, dtype=torch.double), torch.arange(images) % 10)
        for _ in range(2)
    ]
    return Shown(lambda: iter(parts[:1]), lambda: iter(parts[1:]))


@pytest.mark.parametrize(
    ("arch", "settings"),
    [("resnet20", BY_MACS), ("resnet20", Settings(residual=True)), ("mobilenet_v2_x0_5", BY_MACS)],
)
def test_the_network_that_was_rewarded_is_the_one_that_is_left(arch, settings):
    model, graph, x = traced(arch)
    chosen, sample = METHODS["drl"](settings, **FEW["drl"]), shown()
    units = chosen.granularity.split(model, graph, x[:1])
    before = copy.deepcopy(model.state_dict())
    scores = recipe.scores(model, chosen, graph, units, sample)
    keep = chosen.scope(scores, units, 0.4)
    search = chosen.criterion.__self__
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())  # trials are copies
    macs = units[0].widths.macs({u.path: int(k.sum()) for u, k in zip(units, keep)})
    if settings.by_macs:
        assert 0.55 < macs / units[0].widths.dense <= 0.6
    else:
        assert sum(int((~k).sum()) for k in keep) == int(0.4 * sum(u.count for u in units) + 1e-9)
    # masked, with the same weights, it computes what the cut one does
    masked = copy.deepcopy(model)
    least_squares.refit(masked, graph, removal.by_set(units, keep), search.sigma)

    masks = ChannelMasks()
    masks.attach(masked, graph, chosen.granularity.split(masked, graph, x[:1]))
    masks.keep(keep)
    best = search.best
    removed = chosen.remove(model, graph, units, keep, lambda: x)
    with evaluated(model), torch.no_grad():
        assert difference(masked(x), model(x)) < 1e-6
        assert REWARDS["accuracy"](accuracy(model, list(sample.validation())), macs) == pytest.approx(best, abs=1e-9)
    assert "best reward of 4 episodes" in removed.note


def test_a_search_of_one_episode_scales_all_layers_alike():
    model, graph, x = traced("resnet20")
    found = []
    for name, own in (("l1", {}), ("drl", {"images": 8, "episodes": 1})):
        chosen = METHODS[name](BY_MACS, **own)
        units = chosen.granularity.split(model, graph, x[:1])
        keep = chosen.scope(recipe.scores(model, chosen, graph, units, shown()), units, 0.4)
        found.append(torch.tensor([k.float().mean() for k in keep]))
    assert float((found[0] - found[1]).abs().max()) <= 1 / 16  # a channel of the narrowest layer


def test_what_is_remembered_is_what_was_carried_out():
    """A walk that halves whatever is asked for: the agent has to know that, and through which states it led."""

    class Halving(Target):
        def state(self, actions):
            return torch.tensor([len(actions), sum(actions), 0.0])

        def reward(self, actions):
            done = [action / 2 for action in actions]
            return super().reward(done)[0], done

    kept: list[tuple] = []

    class Watched(ddpg.Agent):
        def remember(self, states, actions, reward):
            kept.append((states, actions, reward))
            super().remember(states, actions, reward)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpg, "Agent", Watched)
        walk = Halving()
        best, reward = ddpg.search(walk, ddpg.Numbers(5, 4, 0.95, 10), seed=0)
    assert kept[0][1] == [0.3] * 3
    for states, actions, got in kept:
        assert max(actions) <= 0.5
        assert got == -sum((a - w) ** 2 for a, w in zip(actions, walk.wanted))
        assert [float(s[1]) for s in states] == pytest.approx([0, actions[0], actions[0] + actions[1]])
    assert (best, reward) in [(actions, got) for _, actions, got in kept]


def test_macs_can_vary_below_the_target_where_the_reward_weighs_them():
    model, graph, x = traced("resnet20")
    seen: dict[str, list[float]] = {}
    for reward in ("macs", "accuracy"):
        chosen = METHODS["drl"](BY_MACS, images=8, episodes=6, reward=reward)
        units = chosen.granularity.split(model, graph, x[:1])
        scores = recipe.scores(model, chosen, graph, units, shown())
        search, found = chosen.criterion.__self__, []
        search.rewarded = lambda accuracy, macs, found=found: found.append(macs) or -float(macs)  # the fewer the better
        keep = chosen.scope(scores, units, 0.4)
        macs = units[0].widths.macs({u.path: int(k.sum()) for u, k in zip(units, keep)})
        assert macs == min(found)
        seen[reward] = [value / units[0].widths.dense for value in found]
    assert max(seen["macs"]) <= 0.6
    assert min(seen["macs"]) < 0.5
    assert min(seen["accuracy"]) > 0.55


def test_bits_that_were_carried_out_are_actions_again():
    assert [bits_of(action_of(b)) for b in range(2, 9)] == [*range(2, 9)]


def test_walls_leave_room_for_later_layers():
    model, graph, x = traced("resnet20")
    units = METHODS["drl"](BY_MACS).granularity.split(model, graph, x[:1])
    readers = [model.get_submodule(u.readers()[0][0].removesuffix(".weight")) for u in units]
    cost = units[0].widths.macs
    walk = WidthWalk(readers, units, cost, 0.5 * cost({}), 1, lambda widths: (0.0, widths))
    actions = []
    for _ in units:
        told = walk.state(actions)
        assert told.shape == (10,)
        assert bool(((told >= 0) & (told <= 1)).all())
        actions.append(walk.allowed(actions, 1.0))
    assert actions[0] == 1.0
    assert min(actions) == pytest.approx(0.2)
    assert cost(walk.widths(actions)) / cost({}) == pytest.approx(0.5, abs=0.02)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="reward is 'odd': expected one of macs, accuracy"):
        METHODS["drl"](BY_MACS, reward="odd")
    with pytest.raises(ValueError, match="0 episodes or images: expected at least 1"):
        METHODS["drl"](BY_MACS, episodes=0)


def test_what_an_agent_is_told_of_layers():
    """Index, kind, inputs, outputs, stride, kernel, weights: from least to most, as numbers between 0 and 1."""
    layers = [
        torch.nn.Conv2d(3, 8, 5, stride=2), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 16, 1),
        torch.nn.Linear(32, 4),
    ]  # fmt: skip
    plain = torch.tensor([
        [0, 0, 3, 8, 2, 5, 600], [1, 1, 8, 8, 1, 3, 72], [2, 0, 8, 16, 1, 1, 128], [3, 2, 32, 4, 1, 1, 128],
    ]).float()  # fmt: skip
    least, most = plain.amin(0), plain.amax(0)
    assert torch.allclose(constant(layers), (plain - least) / (most - least))
    assert not constant(layers[:1]).any()  # nothing to compare with
    told = state(constant(layers)[1], 0.25, 0.5, [0.3, 0.7])
    assert told[7:].tolist() == pytest.approx([0.25, 0.5, 0.7])
    assert float(state(constant(layers)[0], 0.0, 1.0, [])[9]) == 1.0  # before the first, all is kept


def test_searches_have_the_authors_numbers(monkeypatch):
    """AMC: an eighth of the episodes is random, σ falls by 0.95; HAQ: a thirtieth, 0.99, and 128 steps per layer."""
    chosen = METHODS["drl"](BY_MACS)
    assert chosen.criterion.__self__.numbers == ddpg.Numbers(800, 100, 0.95, 100)
    bits = chosen.pressure.by_phase["quantised"]
    seen: list[ddpg.Numbers] = []

    def search(walk, numbers, seed):
        seen.append(numbers)
        return [walk.even] * walk.layers, 0.0

    monkeypatch.setattr(ddpg, "search", search)
    model, graph, x = traced("resnet20")
    model = model.float()
    batches = [(x.float(), torch.tensor([0, 1]))]
    bits.attach(model, graph, (), Plan(10, lambda _: 0.1, 0.5, sample=lambda: iter(batches)))
    bits.begin(model)
    assert seen == [ddpg.Numbers(600, 20, 0.99, 128)]
    assert {grid.bits for grid in bits.grids.values()} <= {3, 4}  # a tenth of 32
    size = sum(model.get_parameter(f"{p}.weight").numel() * g.bits for p, g in bits.grids.items())
    assert size <= 0.1 * 32 * sum(model.get_parameter(f"{p}.weight").numel() for p in bits.grids)
