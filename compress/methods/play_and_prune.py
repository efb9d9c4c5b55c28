"""Play-and-Prune-style: an L1 penalty on candidate filters, and a threshold, that follow the accuracy left to lose.

Paper: Singh et al., "Play and Prune: Adaptive Filter Pruning for Deep Model Compression", IJCAI 2019, arXiv 1905.04446
    (the abstract and a summary were read)
Code:  none known
Differs: filled in are all constants and the controller's form, threshold and penalty as slack times first values. It is
    the tolerance that ends it, as there: what it has given by the end of the phase is cut, and no more. The share asked
    for is the most that goes; rounds stop at it. A round is an epoch, or a fifth of the phase where that is shorter;
    the last one has the steps, too, that make no whole round. The first threshold is the largest that takes no more
    than a tenth of the tolerance. A threshold that would break the tolerance takes only what keeps it. Accuracy is that
    on the validation part. Norms are summed over all layers that make a channel, and filters are masked, behind batch
    norm too, until they are cut.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.scopes import Scope
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.masking import ChannelMasks
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput

HARMLESS = 0.1  # share of the tolerance that the first threshold may take
ROUNDS = 5  # at least, in a phase


def controller(
    accuracy: float, baseline: float, tolerance: float, threshold: float, penalty: float, delta: float
) -> tuple[float, float, float]:
    """Slack T = max(C − (E − ε), 0), next threshold W = δ T W₀ and penalty λ = T λ₀."""
    slack = max(accuracy - (baseline - tolerance), 0.0)
    return slack, delta * slack * threshold, slack * penalty


def norms(unit: ChannelUnits) -> Tensor:
    """(count,) ‖f‖₁."""
    return unit.rows().abs().sum(1)


def candidates(norm: Tensor, alive: Tensor, share: float) -> Tensor:
    """bool (count,): of a layer's filters that are left, the share with the smallest norms, at least one."""
    order = norm.masked_fill(~alive, torch.inf).argsort(stable=True)
    chosen = torch.zeros_like(alive)
    chosen[order[: max(1, int(share * int(alive.sum()) + 1e-9))]] = True
    return chosen & alive


def most(count: int, holds: Callable[[int], bool]) -> int:
    """The largest k ≤ `count` that holds, by bisection, as if what holds for k held for less; 0 is taken to hold."""
    if count and holds(count):
        return count
    low, high = 0, count  # holds at low, not at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class Game(Pressure):
    """∂L/∂w ← ∂L/∂w + λ sign w on candidates; at the end of every round those with ‖f‖₁ < W go."""

    def __init__(self, scope: Scope, tolerance: float, share: float, penalty: float, epochs: int):
        if tolerance <= 0 or not 0 < share <= 1 or epochs < 1:
            raise BadInput(f"tolerance {tolerance:g}, share {share:g}, epochs {epochs}: expected > 0, > 0 and >= 1")
        self.scope, self.tolerance, self.share, self.epochs = scope, tolerance, share, epochs
        self.first_penalty = penalty / tolerance  # λ₀: the penalty is λ at full slack
        self.masks = ChannelMasks()

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.plan = units, plan
        self.every = max(1, min(plan.each * self.epochs, plan.steps // ROUNDS))  # steps of a round
        self.rounds = max(1, plan.steps // self.every)
        self.parameters = dict(model.named_parameters())
        self.masks.attach(model, graph, units)
        self.baseline = self.first = self.threshold = -1.0  # E, W₀ and W, once they are known
        self.accuracy, self.penalty = 0.0, self.first_penalty * self.tolerance
        self.attached = True
        self._open()

    def _open(self) -> None:
        """Candidates of the round that begins, and the λ of every filter that makes one."""
        norm = self._norms()
        self.chosen = [candidates(n, kept, self.share) for n, kept in zip(norm, self.masks.kept)]
        self._spread()

    def _norms(self) -> list[Tensor]:
        """Rank 0's: of how many filters are below a threshold, no two processes may think otherwise."""
        return distributed.from_first([norms(u) for u in self.units])

    def _spread(self) -> None:
        self.strength: dict[str, Tensor] = {}
        for unit, chosen in zip(self.units, self.chosen):
            for path in unit.channels.makers:
                weight = self.parameters[path]
                own = self.strength.setdefault(path, weight.new_zeros(len(weight)))
                positions = unit.channels.positions((path, 0)).to(weight.device)
                own[positions] = (self.penalty * chosen[:, None]).expand(positions.shape).to(weight)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        if self.baseline < 0:
            self.baseline = self.accuracy = self.plan.accuracy(model)
        return task(model, x, y)

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        for path, strength in self.strength.items():
            weight = self.parameters[path]
            if weight.grad is not None:
                weight.grad.add_(weight.sign() * strength.view(-1, *[1] * (weight.ndim - 1)))

    def after_step(self, model: nn.Module, step: int) -> None:
        # the last round ends with the phase: nothing is trained, or penalised, behind the last look at the accuracy
        at_end = step + 1 == self.plan.steps
        if at_end or ((step + 1) % self.every == 0 and (step + 1) // self.every < self.rounds):
            self._close(model)

    @torch.no_grad()
    def _close(self, model: nn.Module) -> None:
        """The end of a round: prunes, measures, and sets λ and W for the next one."""
        order = self._order(self._norms())
        alive = [k.clone() for k in self.masks.kept]

        @functools.cache  # the count that is found is tried once more in the end
        def without(count: int) -> float:
            self.masks.keep(self._without(alive, order, count))
            return self.plan.accuracy(model)

        now = without(0) if self.first < 0 else 0.0
        if self.first < 0 and now <= self.baseline - self.tolerance:
            count = 0  # nothing is left to lose: W₀ is looked for when there is
        elif self.first < 0:
            bound = max(now - HARMLESS * self.tolerance, self.baseline - self.tolerance)
            count = most(len(order), lambda k: without(k) >= bound)
            # the norm of the first that stays is the largest threshold that takes so many
            self.first = order[min(count, len(order) - 1)][0] if order else 0.0
        else:
            below = sum(n < self.threshold for n, _, _ in order)
            count = most(below, lambda k: without(k) >= self.baseline - self.tolerance)
        self.accuracy = without(count)
        self.masks.keep(self._without(alive, order, count))
        _, self.threshold, self.penalty = controller(
            self.accuracy, self.baseline, self.tolerance, self.first, self.first_penalty, 1 / self.tolerance
        )
        self._open()

    @staticmethod
    def _without(alive: Sequence[Tensor], order: Sequence[tuple[float, int, int]], count: int) -> list[Tensor]:
        """What stays when the first `count` of `order` go."""
        kept = [k.clone() for k in alive]
        for _, layer, i in order[:count]:
            kept[layer][i] = False
        return kept

    def _order(self, norm: Sequence[Tensor]) -> list[tuple[float, int, int]]:
        """(‖f‖₁, layer, filter) of the candidates that the target and its floors let go, the smallest first."""
        scores = [n.masked_fill(~c, torch.inf) for n, c in zip(norm, self.chosen)]
        scores = [s.masked_fill(~k, -torch.inf) for s, k in zip(scores, self.masks.kept)]
        goes = [~k.to(c.device) & c for k, c in zip(self.scope(scores, self.units, self.plan.sparsity), self.chosen)]
        return sorted(
            (float(norm[layer][i]), layer, i) for layer, g in enumerate(goes) for i in g.nonzero().flatten().tolist()
        )

    def select(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        """What the game has left; `ratio` bounded its rounds. Without one, as many as asked for go."""
        return list(self.masks.kept) if self.attached else self.scope(scores, units, ratio)

    def fold(self, model: nn.Module) -> None:
        """Without the masks; what they hide is cut behind it."""
        self.masks.detach()
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        numbers = [self.baseline, self.first, self.threshold, self.accuracy, self.penalty]
        both = {f"kept.{i}": k for i, k in enumerate(self.masks.kept)}
        both |= {f"chosen.{i}": c for i, c in enumerate(self.chosen)}
        return {"own": torch.tensor(numbers, dtype=torch.double)} | both

    def restore(self, state: dict[str, Tensor]) -> None:
        self.baseline, self.first, self.threshold, self.accuracy, self.penalty = state["own"].tolist()[:5]
        self.masks.keep([state[f"kept.{i}"].to(kept.device) for i, kept in enumerate(self.masks.kept)])
        self.chosen = [state[f"chosen.{i}"].bool().to(c.device) for i, c in enumerate(self.chosen)]
        self._spread()

    def report(self, model: nn.Module) -> str:
        left, total = sum(int(k.sum()) for k in self.masks.kept), sum(u.count for u in self.units)
        lost = 100 * (self.baseline - self.accuracy)
        return f"{left} of {total} channels left, {lost:.2f} of {100 * self.tolerance:g} points lost"


def play_and_prune(
    settings: Settings, *, tolerance: float = 0.01, share: float = 0.1, penalty: float = 1e-4, epochs: int = 1
) -> Recipe:
    """Removes, round by round, filters with small L1 that a penalty has shrunk, as accuracy allows; then fine-tunes.

    The target is the most that goes; the tolerance may end it before.
    tolerance: ε, of an accuracy between 0 and 1; share: of a layer's filters that are candidates; penalty: λ when all
    of the tolerance is left; epochs: in a round.
    """
    game = Game(settings.pooled, tolerance, share, penalty, epochs)
    return Recipe(
        settings.channels(),
        criteria.l1,
        game.select,
        partial(schedules.press_trained, guarded=True),
        pressure=game,
        reach=settings.pooled,
    )
