"""DRL-style: an agent picks how many channels every layer keeps, noise which weights; another how many bits they get.

Paper: Zhan et al., "Deep Model Compression via Two-Stage Deep Reinforcement Learning", 2019, arXiv 1912.02254
    (the abstracts alone were read)
Code:  none known; agents and their numbers are those of github.com/mit-han-lab/amc (He et al., "AMC", ECCV 2018, arXiv
    1802.03494) and github.com/mit-han-lab/haq (Wang et al., "HAQ", CVPR 2019, arXiv 1811.08886)
Differs: filled in is everything that the abstracts do not say, with the constants of AMC and HAQ. An action is the
    share of a set of channels that leave together, described by the first layer that reads it, where AMC takes the
    inputs of single layers. An episode whose widths are above the target, or with --set reward=accuracy any, has them
    all scaled until it is met exactly; others stay as they are, so that MACs differ from one to the next and the reward
    has something to weigh. The network that is rewarded is what is left, and its widths are what the agent remembers
    to have done. Widths are multiples of --round_to, AMC's of 8. The warm-up
    is an eighth of the episodes, a thirtieth with bits; the first one treats all layers alike. What reads channels that
    go is fitted by least squares on all pixels of some images. Information dropout prunes single weights of what is
    left, as the second version of the paper does, or with --set variational=kernels whole kernels, as the first one:
    for the first half of the fine-tuning, with the bound's own weight of the divergence, and by a signal-to-noise ratio
    below 1, none of which the abstracts say. How many go is the noise's choice, beside the target, and it is the
    channels alone that the agent is rewarded for. Weights lie on uniform grids of 2 to 8 bits, symmetric, with a
    scale per output channel, where HAQ shares 2 ^ bits centroids: that is what Q/DQ can say. So do the inputs of
    layers, with 8 bits each. The last quarter of the epochs trains on these grids.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kerf.compress.measures import least_squares
from kerf.compress.methods.drl import ddpg
from kerf.compress.methods.drl.bit_widths import WHOLE, BitWidths, Numbers
from kerf.compress.methods.drl.information_dropout import InformationDropout
from kerf.compress.methods.drl.layer_features import constant, state
from kerf.compress.methods.drl.stages import Stages
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import evaluated
from kerf.compress.pruning import removal, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.removal import Images, Removal
from kerf.compress.pruning.schedules import Budget, Phase
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import NOTHING, Pressure
from kerf.compress.training.quantise import LEAST
from kerf.compress.training.sample import Sample, accuracy, first, held_out
from kerf.compress.units.channels import ChannelUnits, by_channel
from kerf.errors import BadInput

NOISE, BITS = "information dropout", "quantised"  # phases
VARIATIONAL = ("weights", "kernels", "none")
LOWEST = 0.2  # share of a layer's channels that an action keeps
FITTED = 256  # training images on which inputs are made up for

# accuracy as a share, MACs per image
REWARDS: dict[str, Callable[[float, float], float]] = {
    "macs": lambda accuracy, macs: -(1 - accuracy) * math.log(macs),
    "accuracy": lambda accuracy, _: accuracy,
}


def wall(action: float, budget: float, other: float, this: float) -> float:
    """At most what leaves later layers their lowest share: other + a · this ≤ budget; at least LOWEST."""
    return max(min(action, (budget - other) / this), LOWEST)


def kept_width(share: float, count: int, multiple: int) -> int:
    """share · count, rounded, up to a multiple; down to one where that is more than all."""
    width = -(-round(share * count) // multiple) * multiple
    return max(1, width if width <= count else count // multiple * multiple)


class WidthWalk:
    """The ddpg.Walk of stage one."""

    even = 1.0  # then all widths are scaled by one factor

    def __init__(
        self,
        readers: Sequence[nn.Module],
        units: Sequence[ChannelUnits],
        cost: Callable[[Mapping[str, float]], float],
        budget: float,
        multiple: int,
        reward: Callable[[list[int]], tuple[float, list[int]]],
    ):
        """``reward`` of widths, and the widths that they became."""
        self.layers, self.units, self.cost, self.multiple, self.tried = len(units), units, cost, multiple, reward
        self.fixed, self.whole = constant(readers), {u.path: u.count for u in units}
        self.full = cost(self.whole)
        self.budget = budget

    def widths(self, actions: Sequence[float]) -> dict[str, int]:
        return {u.path: kept_width(a, u.count, self.multiple) for u, a in zip(self.units, actions)}

    def state(self, actions: Sequence[float]) -> Tensor:
        now = len(actions)
        saved = 1 - self.cost(self.whole | self.widths(actions)) / self.full
        later = 1 - self.cost(self.whole | {u.path: 0 for u in self.units[now + 1 :]}) / self.full
        return state(self.fixed[now], saved, later, actions)

    def allowed(self, actions: Sequence[float], action: float) -> float:
        least = {u.path: LOWEST * u.count for u in self.units} | self.widths(actions)
        unit = self.units[len(actions)]
        other, most = (self.cost(least | {unit.path: width}) for width in (0, unit.count))
        return wall(action, self.budget, other, most - other)

    def reward(self, actions: Sequence[float]) -> tuple[float, list[float]]:
        reward, widths = self.tried(list(self.widths(actions).values()))
        return reward, [width / u.count for width, u in zip(widths, self.units)]


class Widths:
    """Criterion, scope and removal: Σ|w| of what reads a channel ranks it, the search says how many stay."""

    def __init__(self, settings: Settings, episodes: int, images: int, reward: str):
        if reward not in REWARDS:
            raise BadInput(f"reward is {reward!r}: expected one of {', '.join(REWARDS)}")
        self.settings, self.scope, self.images, self.rewarded = settings, settings.pooled, images, REWARDS[reward]
        self.exact = reward == "accuracy"  # which falls with every channel: all of the budget is used
        self.numbers = ddpg.Numbers(episodes, episodes // 8, decay=0.95, replay=100)
        self.model: nn.Module | None = None

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], sample: Sample) -> None:
        self.model, self.graph = model, graph
        self.validation = list(first(held_out(sample), self.images))
        self.sigma = least_squares.moments(model, graph, [u.path for u in units], first(sample, FITTED))
        self.norms = {u.path: _read(model, u) for u in units}

    def score(self, unit: ChannelUnits) -> Tensor:
        return self.norms[unit.path]

    def select(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        model = self.model
        assert model is not None  # observe has seen it
        ranks = [s.cpu().argsort(descending=True, stable=True).argsort() + 1.0 for s in scores]
        readers = [model.get_submodule(_readers(u)[0].rpartition(".")[0]) for u in units]
        cost = units[0].widths.macs if self.settings.by_macs else lambda widths: sum(widths.values())
        # the share is of the network as it was traced, which earlier steps may have made narrower
        traced = units[0].widths.uncut().dense if self.settings.by_macs else sum(u.count + u.gone for u in units)
        budget = (1 - ratio) * traced
        found: list[tuple[float, list[Tensor]]] = []

        def chosen(widths: Sequence[int]) -> list[Tensor]:
            """These widths, or those in their proportions that meet the target: rank / width is 1 where one ends."""
            named = {u.path: max(width, self.settings.min_width) for u, width in zip(units, widths)}
            if not self.exact and cost(named) <= budget:
                return [rank <= width for rank, width in zip(ranks, named.values())]
            return self.scope([-rank / width for rank, width in zip(ranks, widths)], units, ratio)

        def tried(widths: Sequence[int]) -> tuple[float, list[int]]:
            keep = chosen(widths)
            macs = units[0].widths.macs({u.path: int(k.sum()) for u, k in zip(units, keep)})
            narrow = copy.deepcopy(model)
            self._narrow(narrow, self.graph, removal.by_set(units, keep))
            found.append((self.rewarded(accuracy(narrow, self.validation), macs), keep))
            return found[-1][0], [int(k.sum()) for k in keep]

        walk = WidthWalk(readers, units, cost, budget, self.settings.round_to, tried)
        with evaluated(model), torch.no_grad():
            _, self.best = ddpg.search(walk, self.numbers, self.settings.seed)
        return next(keep for reward, keep in found if reward == self.best)

    def _narrow(self, model: nn.Module, graph: DependencyGraph, keep: Mapping[str, Tensor]) -> DependencyGraph:
        least_squares.refit(model, graph, keep, self.sigma)
        return surgery.cut(model, graph, keep)

    def remove(
        self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], keep: Sequence[Tensor], _: Images
    ) -> Removal:
        kept = removal.by_set(units, keep)
        note = f"{removal.describe(kept)}; best reward of {self.numbers.episodes} episodes {self.best:.4f}"
        self.model = None
        return Removal(self._narrow(model, graph, kept), kept=kept, note=note)


def _readers(unit: ChannelUnits) -> list[str]:
    """Raises ValueError for channels that no layer reads."""
    return [path for path, _ in unit.readers()]


def _read(model: nn.Module, unit: ChannelUnits) -> Tensor:
    """(count,) Σ|w| over all that multiplies a channel."""
    columns = [
        (surgery.tensor_at(model, path).detach().transpose(0, 1).flatten(1), (path, 1)) for path in _readers(unit)
    ]
    return torch.stack([by_channel(c.abs().sum(1), unit.channels, place).sum(1) for c, place in columns]).sum(0)


def stages(budget: Budget, noisy: bool, quantises: bool) -> Iterator[Phase]:
    """Channels go; half of the fine-tuning is with noise, half without; the last quarter of the epochs on grids."""
    last = -(-budget.epochs // 4) if quantises else 0
    rest = budget.epochs - last
    noise = -(-rest // 2) if noisy else 0
    yield Phase("dense", budget.dense_epochs, 0.0)
    if noisy:
        yield Phase(NOISE, noise, budget.sparsity, pressure=True)
    yield Phase("fine-tune", rest - noise, budget.sparsity)
    if quantises:
        yield Phase(BITS, last, budget.sparsity, pressure=True)


def drl(
    settings: Settings,
    *,
    episodes: int = 800,
    bit_episodes: int = 600,
    images: int = 5000,
    tuned: int = 20_000,
    size: float = 0.1,
    reward: str = "macs",
    variational: str = "weights",
    penalty: float = 1.0,
    noise_rate: float = 1e-2,
) -> Recipe:
    """Searches the width of every layer by reinforcement learning, drops weights that noise drowns while it fine-tunes,
    then searches bits of weights.

    episodes, bit_episodes: networks that are tried; images: validation images that reward one, kept in memory; tuned:
    training images that a quantised one is first trained on; size: of the weights of what is left, as a share of their
    f32 size; 1 leaves them f32; reward of pruning: macs, −(1 − accuracy) ln MACs, which may go below the target, or
    accuracy, which meets it exactly; variational: what information dropout drops, weights, kernels or none; penalty: of
    the noise's divergence, in units of the variational bound; noise_rate: highest learning rate of its loudness.
    """
    if variational not in VARIATIONAL:
        raise BadInput(f"variational is {variational!r}: expected one of {', '.join(VARIATIONAL)}")
    if min(penalty, noise_rate) <= 0:
        raise BadInput(
            f"penalty {penalty:g}, noise_rate {noise_rate:g}: expected above 0; variational=none has no noise"
        )
    if (few := min(episodes, bit_episodes, images, tuned)) < 1:
        raise BadInput(f"{few} episodes or images: expected at least 1 of each")
    if not LEAST / WHOLE <= size <= 1:
        raise BadInput(f"size is {size}: expected a share from {LEAST / WHOLE} ({LEAST} bits a weight) to 1")
    search, quantises = Widths(settings, episodes, images, reward), size < 1
    acting: dict[str, Pressure] = {}
    if noisy := variational != "none":
        acting[NOISE] = InformationDropout(variational == "kernels", settings.full, penalty, noise_rate)
    if quantises:
        acting[BITS] = BitWidths(Numbers(bit_episodes, images, tuned, size, settings.seed))
    return Recipe(
        settings.channels(),
        search.score,
        search.select,
        partial(stages, noisy=noisy, quantises=quantises) if acting else schedules.one_shot,
        pressure=Stages(acting) if acting else NOTHING,
        remove=search.remove,
        reach=settings.pooled,
        observe=search.observe,
    )
