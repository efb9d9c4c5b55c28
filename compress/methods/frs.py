"""Feature relevance scores: every few epochs of training, channels that matter least to images' own classes go.

Paper: Aketi et al., "Gradual Channel Pruning While Training Using Feature Relevance Scores for Convolutional Neural
    Networks", IEEE Access 2020, arXiv 2002.09958
Code:  github.com/purdue-nrl/Gradual-Channel-Pruning-using-FRS
Differs: the interval is such that ten removals (their default on CIFAR-10) fill three quarters of the epochs, each of
    an equal share of the channels or MACs asked for; the authors give numbers of epochs and channels. Scores are taken
    on a part of the training images, and class accuracies on the same; classes that are not among them do not count.
    Inputs below zero, which the authors' networks have none of, count by the sign of their products with weights.
    Removed channels are cut at once, so that training gets cheaper, or masked as if cut in a user's own loop (the
    authors' masked layers still emit batch norm's β); no layer is left out, nor are hidden neurons of the classifier
    pruned apart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kerf.compress.measures.relevance import relevances
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import evaluated
from kerf.compress.pruning import schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.masking import ChannelMasks
from kerf.compress.training.pressure import Plan, Pressure
from kerf.compress.training.sample import Sample, first
from kerf.compress.units.channels import ChannelUnits, by_channel
from kerf.errors import BadInput

TINY = 1e-9


def events(until: int, every: int) -> list[int]:
    """The epochs, from 0, at whose ends channels go: e < N1 with (e + 1) mod n = 0."""
    return [e for e in range(until) if (e + 1) % every == 0]


def class_weights(accuracy: Tensor) -> Tensor:
    """(classes,) s_c = σ(1 / a_c), accuracies a_c as shares of the highest: what is recognised badly counts more."""
    return (1 / (accuracy / accuracy.max().clamp(min=TINY))).sigmoid()


def scored(model: nn.Module, units: Sequence[ChannelUnits], sample: Sample, images: int) -> list[Tensor]:
    """(count,) of each unit: |mean over classes of s_c · mean over their images of R|, divided by the layer's L2 norm.

    Raises ValueError for channels that no relevance reaches.
    """
    weights = {path: model.get_parameter(path) for u in units for path in u.channels.makers}
    sums: dict[str, Tensor] = {}
    counts = hits = torch.zeros(0)
    with evaluated(model):
        for x, y in first(sample, images):
            logits, found = relevances(model, weights, x, y)
            classes = torch.nn.functional.one_hot(y, logits.shape[1]).double()  # (B, classes)
            hit = (logits.argmax(1) == y).double()
            if not sums:
                counts, hits = torch.zeros_like(classes[0]), torch.zeros_like(classes[0])
            counts, hits = counts + classes.sum(0), hits + hit @ classes
            for path, r in found.items():
                sums[path] = sums.get(path, 0) + r.double().T @ classes  # (O, classes)
    seen = counts > 0
    share = class_weights(hits[seen] / counts[seen]) / counts[seen] / seen.sum()
    scores = []
    for unit in units:
        if not all(path in sums for path in unit.channels.makers):
            raise BadInput(f"{unit.path}: no relevance reaches its channels; leave it out with --skip")
        made = [by_channel(sums[p][:, seen] @ share, unit.channels, (p, 0)).sum(1) for p in unit.channels.makers]
        score = sum(made[1:], made[0]).abs()
        scores.append(score / (score.norm() + TINY))
    return scores


class Gradual(Pressure):
    """Removed after the k-th of K events: the share k / K of what is to go in the end. What has gone stays gone."""

    def __init__(self, scope: Scope, images: int, number: int, until: float):
        if number < 1 or not 0 < until <= 1:
            raise BadInput(f"{number} events until {until:g} of the epochs: expected at least 1, and above 0 to 1")
        self.scope, self.images, self.number, self.until = scope, images, number, until
        self.masks = ChannelMasks()

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.plan, self.done = units, plan, 0  # events that are over
        last = max(1, int(self.until * plan.steps / plan.each + TINY))
        self.events = events(last, -(-last // self.number))  # no more than asked for
        self.masks.attach(model, graph, units, plan.cut)
        self.scores = [torch.zeros(u.count, dtype=torch.double, device=u.sizes.device) for u in units]
        self.attached = True

    def after_step(self, model: nn.Module, step: int) -> None:
        epoch, within = divmod(step + 1, self.plan.each)
        if within == 0 and epoch - 1 in self.events:
            self.done = self.events.index(epoch - 1) + 1
            self.scores = scored(model, self.units, self.plan.sample, self.images)
            share = self.plan.sparsity * self.done / len(self.events)
            keep = self.scope([self.score(u) for u in self.units], self.units, share)
            keep = distributed.from_first(keep)
            if self.plan.cut:
                self.scores = [score[kept.to(score.device)] for score, kept in zip(self.scores, keep)]
            self.units = self.masks.drop(self.units, keep)

    def score(self, unit: ChannelUnits) -> Tensor:
        index = [u.path for u in self.units].index(unit.path)
        return self.scores[index].masked_fill(~self.masks.kept[index], -torch.inf)

    def fold(self, model: nn.Module) -> None:
        """Without the masks; what they hide is cut behind it."""
        self.masks.detach()
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        scores = {f"score.{i}": score for i, score in enumerate(self.scores)}
        return {"done": torch.tensor(self.done)} | scores | {f"kept.{i}": k for i, k in enumerate(self.masks.kept)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.done = int(state["done"])
        self.scores = [score.copy_(state[f"score.{i}"]) for i, score in enumerate(self.scores)]
        self.masks.keep([state[f"kept.{i}"].to(kept.device) for i, kept in enumerate(self.masks.kept)])

    def report(self, model: nn.Module) -> str:
        left, total = sum(int(k.sum()) for k in self.masks.kept), sum(u.count + u.gone for u in self.units)
        return f"{self.done} of {len(self.events)} removals, {left} of {total} channels left"


def frs(settings: Settings, *, images: int = 6400, events: int = 10, until: float = 0.75) -> Recipe:
    """Removes, every few epochs of training, the channels of all layers with the smallest relevance; none is retrained.

    images: training images that are scored each time; events: how many times; until: share of the epochs they fill.
    """
    gradual = Gradual(settings.pooled, images, events, until)
    return Recipe(
        settings.channels(scaled=True),  # gates get no relevance
        gradual.score,
        gradual.scope,
        schedules.within_training,
        pressure=gradual,
    )
