"""C2S2-style: layer by layer, binary gates learn which channels to drop, for as long as the loss allows it.

Paper: Chiu et al., "C2S2: Cost-aware Channel Sparse Selection for Progressive Network Pruning", 2019,
    arXiv 1904.03508 (the abstract alone was read)
Code:  none known
Differs: from the abstract are gates with a real and a binary copy, two phases layer by layer, a term that favours fewer
    channels and one that stops it where accuracy would suffer; filled in is the rest. A binary gate is 1 where the real
    one is over 1/2, at the best tenth of a layer, and at all but a few that grow step by step while the loss allows it
    and shrink again where it does not: of a trained network no channel has a slope that would hold its gate before the
    first of them has gone. The real ones feel its gradient, and λ c (1/C) Σ r, where c is what the layer costs, in
    MACs, over what the mean one does. λ falls from λ0 to zero as the running loss rises by κ over what it was when the
    layer was opened, and is zero once the gates of all layers together meet the target: loss and cost say how wide each
    layer stays. Gates learn at 0.01, or so that in their phase the term alone could take one of a mean layer from 1 to
    0; nothing else learns then. In the second phase gates rest and the weights learn. Layers are opened by falling
    share of the MACs, several at once where there are fewer steps than layers. At the end exactly as much goes as was
    asked for: of all layers first what gates have dropped, then the smallest real gates (of equal ones, the smaller
    mean |w|); then fine-tuning.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kerf.compress.network.grafts import Grafts
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import criteria, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.pressure import ParameterGroup, Plan, Pressure, Task
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput

THRESHOLD = 0.5
RATE = 0.01  # of gates, at least
SELECTING = 0.4  # share of a layer's steps in which its gates learn; the weights have the rest
LOWEST = 0.1  # share of a layer that its gates always leave
SMOOTH = 0.9  # of the running loss, less where gates learn for fewer steps than 40


def binary(r: Tensor, least: int = 1) -> Tensor:
    """1 over the threshold and at the `least` largest; backwards the identity."""
    b = r > THRESHOLD
    b[r.argsort(descending=True, stable=True)[:least]] = True
    return r + (b.to(r.dtype) - r).detach()


def cost_aware(weight: float, loss: float, reference: float, kappa: float) -> float:
    """λ0 max(0, 1 − (L − L_ref) / (κ L_ref)), and no more than λ0."""
    return weight * min(1.0, max(0.0, 1 - (loss - reference) / (kappa * max(reference, 1e-12))))


class SparseSelection(Pressure):
    def __init__(self, settings: Settings, weight: float, kappa: float):
        self.settings, self.weight, self.kappa = settings, weight, kappa
        self.grafts = Grafts("selection", self._act)

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.plan = units, plan
        self.r = self.grafts.attach(model, graph, [u.channels for u in units], torch.ones, depthwise=True)
        self.least = [max(self.settings.min_width, math.ceil(LOWEST * u.count)) for u in units]
        dear = [float(u.macs.sum()) for u in units]
        self.cost = [each * len(dear) / max(1.0, sum(dear)) for each in dear]
        self.open_to = [0.0 for _ in units]  # how many gates of each layer may be zero now
        self.by_id = {id(r): i for i, r in enumerate(self.r)}
        self.order = sorted(range(len(units)), key=lambda i: (-int(units[i].macs.sum()), i))
        self.turns = max(1, min(len(units), plan.steps // 2))
        self.selecting = SELECTING * plan.steps / self.turns
        self.smooth = min(SMOOTH, max(0.0, 1 - 4 / self.selecting))
        self.travel = [
            sum(plan.rate(step) for step in range(*self._steps(turn)) if self.at(step)[1]) for turn in range(self.turns)
        ]  # of gates, in each turn
        self.running = self.reference = self.strength = 0.0
        self.turn = -1  # whose reference it is
        own = {id(r) for r in self.r}
        self.weights = [p for p in model.parameters() if id(p) not in own]
        self.attached = True

    def _act(self, x: Tensor, r: Tensor) -> Tensor:
        return x * binary(r, self.held(self.by_id[id(r)])).to(x.dtype).view(-1, *[1] * (x.ndim - 2))

    def held(self, layer: int) -> int:
        """How many of a layer's gates are 1 in any case."""
        return max(self.least[layer], len(self.r[layer]) - int(self.open_to[layer]))

    def _allow(self, layers: Sequence[int]) -> None:
        """More gates of these layers may close while the loss is below what ends the push, fewer while it is above."""
        for i in layers:
            count = len(self.r[i])
            each = 2 * self.cost[i] * count / self.selecting
            over = self.running > (1 + self.kappa) * self.reference
            self.open_to[i] = min(max(0.0, self.open_to[i] + (-each if over else each)), count - self.least[i])

    def at(self, step: int) -> tuple[int, bool]:
        """Which turn that step is of, and whether gates learn in it."""
        turn = min(step * self.turns // self.plan.steps, self.turns - 1)
        first, end = self._steps(turn)
        return turn, step < first + max(1, round(SELECTING * (end - first)))

    def _steps(self, turn: int) -> tuple[int, int]:
        return -(-turn * self.plan.steps // self.turns), -(-(turn + 1) * self.plan.steps // self.turns)

    def open(self, turn: int) -> list[int]:
        """The layers of that turn."""
        first, end = (t * len(self.units) // self.turns for t in (turn, turn + 1))
        return self.order[first:end]

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        names = [f"{self.grafts.name}.{i}" for i in range(len(self.r))]
        return [ParameterGroup(names, momentum=0.0, nesterov=False, weight_decay=0.0)]

    def widths(self) -> list[int]:
        """How many channels the gates leave in each layer."""
        each = [binary(r.detach(), self.held(i)).sum() for i, r in enumerate(self.r)]
        return torch.stack(each).long().tolist()  # one wait for the device

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        loss, logits = task(model, x, y)
        seen, images = distributed.total(loss.new_tensor([float(loss.detach()) * len(y), len(y)], dtype=torch.double))
        mean = float(seen / images)
        self.running = self.smooth * self.running + (1 - self.smooth) * mean if step else mean
        turn, selecting = self.at(step)
        if turn != self.turn:
            self.turn, self.reference = turn, self.running
        self.strength = 0.0
        if selecting:
            self.strength = cost_aware(self.weight, self.running, self.reference, self.kappa)
            widths = self.widths()
            if self.left(widths) > 1 - self.plan.sparsity:
                self._allow(self.open(turn))
                pushed = [self.cost[i] * self.r[i].mean() for i in self.open(turn) if widths[i] > self.least[i]]
                loss = loss + self.strength * sum(pushed)
        return loss, logits

    def left(self, widths: Sequence[int]) -> float:
        """With these widths, the share of the MACs, or of the channels, that the target counts."""
        if not self.settings.by_macs:
            return sum(widths) / sum(u.count for u in self.units)
        cost = self.units[0].widths
        return cost.macs({u.path: width for u, width in zip(self.units, widths)}) / cost.dense

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        turn, selecting = self.at(step)
        opened = self.open(turn) if selecting else []
        for i, r in enumerate(self.r):
            if i in opened:
                r.grad.mul_(self.pace(i, turn))
            else:
                r.grad = None
        for parameter in self.weights if selecting else ():
            parameter.grad = None

    def pace(self, layer: int, turn: int) -> float:
        """Factor of the learning rate of a layer's gates; the layer's cost is in what they are pushed with."""
        alone = len(self.r[layer]) / max(self.weight * self.travel[turn], 1e-12)
        return max(RATE / self.plan.peak, alone)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        for r in self.r:
            r.clamp_(0, 1)

    def score(self, unit: ChannelUnits) -> Tensor:
        """b + r; a millionth of mean |w| tells equal ones apart."""
        size = criteria.l1(unit).double()
        if not self.attached:
            return size
        index = [u.path for u in self.units].index(unit.path)
        r = self.r[index].detach()
        return (binary(r, self.held(index)) + r).double() + 1e-6 * size / size.max().clamp(min=1e-30)

    def fold(self, model: nn.Module) -> None:
        """Without the gates; what they hide comes back unless it is cut."""
        if self.attached:
            self.grafts.detach(model)
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        own = torch.tensor([self.turn, self.running, self.reference], dtype=torch.double)
        return {"own": own, "open": torch.tensor(self.open_to, dtype=torch.double)}

    def restore(self, state: dict[str, Tensor]) -> None:
        turn, self.running, self.reference = state["own"].tolist()[-3:]
        self.turn, self.open_to = int(turn), state["open"].tolist()

    def report(self, model: nn.Module) -> str:
        left, total = sum(self.widths()), sum(u.count for u in self.units)
        turn = max(0, self.turn) + 1
        return f"turn {turn} of {self.turns}, gates leave {left} of {total} channels, push {self.strength:.1e}"


def c2s2(settings: Settings, *, sparsity_weight: float = 0.01, kappa: float = 0.05) -> Recipe:
    """C2S2-style: cuts channels that binary gates drop, layer by layer, while the loss allows it; then fine-tunes.

    sparsity_weight: λ0; kappa: the rise of the loss, as a share, at which no more are dropped.
    """
    if not (sparsity_weight > 0 and kappa > 0):
        raise BadInput(f"sparsity_weight is {sparsity_weight}, kappa {kappa}: expected more than 0")
    selection = SparseSelection(settings, sparsity_weight, kappa)
    return Recipe(
        settings.channels(),
        selection.score,
        settings.pooled,
        schedules.press_trained,
        pressure=selection,
    )
