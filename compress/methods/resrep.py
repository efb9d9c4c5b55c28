"""ResRep: compactors that learn which channels to forget, folded away without loss.

Paper: Ding et al., "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting", ICCV 2021,
    arXiv 2007.03260
Code:  github.com/DingXiaoH/ResRep
Differs: with --residual one compactor serves every branch of a residual sum; the authors' converter folds the first
    layer's compactor into branches that never had it in training, which changes the function. Masks are built anew each
    time (theirs keep an old mask where none is made), and layers at their floor do not use up the channels of a choice
    (theirs do, and masking can stop short of the target). The first mask comes after 5 % of the steps (--set start=
    0.0104 and 0.0278 are the authors' five epochs of 480 on CIFAR-10 and of 180 on ImageNet). Short runs get their own
    pace: masks are chosen within a fifth of the steps, as in the authors' ResNet-50 log; until then λ is such that it
    could move a row by 1.5, after that 1e-4; on masked rows, where nothing opposes it, it is such that a row can shrink
    from 1 to 0 five times over in the rest; momentum acts over no more than a twentieth of the steps; compactors learn
    at 0.01 where the rest learns faster. Long runs come out at the authors' 200 steps, 1e-4 and 0.99, but for ResNet-50
    on ImageNet, whose 3,200 channels would then take a little more than that fifth: its masks come somewhat more often
    (--set mask_interval=200 is theirs). The channels that are masked at the end are cut, so the target is met exactly;
    how far their rows were from zero is reported. γ and β stay, as an ordinary convolution and a batch norm with its
    true statistics, so that training can go on. Constants behind depthwise filters go into the next layer by their true
    value (the authors take |β|). All parameters have the same rate and decay; the authors' biases learn twice as fast,
    and theirs and the batch norms' do not decay.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.network import folding
from kerf.compress.network.grafts import Grafts, made
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import removal, schedules, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.removal import Images, Removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.pressure import ParameterGroup, Plan, Pressure
from kerf.compress.units.channels import ChannelUnits, Foldable
from kerf.errors import BadInput

CHOSEN = 0.2  # share of the steps after which all masks are there, as in the authors' ResNet-50 log
LASSO = 1e-4
RATE = 0.01  # highest learning rate of compactors: with momentum 0.99 more than the authors' makes them jump
DEAD = 1e-5  # norm of a row that is gone even if no mask says so


class Compactors(Pressure):
    """Q (D, D) behind each layer. Per step, for row j: G(Q_j) ← m_j ∂L/∂Q_j + λ Q_j / ‖Q_j‖."""

    def __init__(
        self,
        settings: Settings,
        lasso: float | None,
        momentum: float | None,
        interval: int | None,
        granularity: int,
        start: float,
    ):
        if not 0 <= start < 1 or granularity < 1:  # beyond, no mask would be chosen, and the cut would lose much
            raise BadInput(f"start {start:g}, granularity {granularity}: expected 0 to below 1, and at least 1")
        self.settings, self.lasso, self.start = settings, lasso, start
        self.asked = momentum, interval, granularity
        self.dropped = 0  # channels of the last choice, before widths were rounded
        self.grafts = Grafts("compactors", compact)
        self.reached = False  # the masks leave no more MACs than asked for

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.graph, self.sparsity = units, graph, plan.sparsity
        self.q = self.grafts.attach(model, graph, [u.channels for u in units], torch.eye)
        self.masks = [torch.ones(u.count, device=q.device) for u, q in zip(units, self.q)]
        self.first = round(self.start * plan.steps)
        momentum, interval, self.granularity = self.asked
        # it acts over 1 / (1 - μ) steps, of which a short run has few
        self.momentum = min(0.99, max(0.0, 1 - 20 / plan.steps)) if momentum is None else momentum
        chosen = int(CHOSEN * plan.steps)
        self.calm = self.interval = interval or 0  # steps between choices, and once the target is reached
        if not self.interval:
            going = sum(u.count - int(k.sum()) for u, k in zip(units, self._uniform()))
            left = chosen - self.first
            self.interval = max(1, min(200, left * self.granularity // max(1, going)))
            self.granularity = max(self.granularity, -(-going * self.interval // max(1, left)))
            self.calm = max(self.interval, min(200, plan.steps // 50))
        self.scale = min(1.0, RATE / plan.peak)
        rest = max(self.scale * plan.travel(chosen), 1e-9)
        before = max(self.scale * plan.travel() - rest, 1e-9)
        self.choosing = self.lasso or min(5e-3, max(LASSO, 1.5 * (1 - self.momentum) / before))
        self.holding = self.lasso or LASSO
        self.pace = self.lasso or min(1.0, max(self.choosing, 5 * (1 - self.momentum) / rest))
        self.attached = True

    def _uniform(self) -> list[Tensor]:
        sizes = [u.sizes.float() for u in self.units]
        return scopes.uniform_macs(sizes, self.units, self.sparsity, **self.settings.floors)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        names = [f"{self.grafts.name}.{i}" for i in range(len(self.q))]
        return [ParameterGroup(names, self.scale, self.momentum, nesterov=False, weight_decay=0.0)]

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        interval = self.calm if self.reached else self.interval
        if step > self.first and (step - self.first) % interval == 0:
            self._choose()
        lasso = self.holding if self.reached else self.choosing
        for width in {len(q) for q in self.q}:  # few large operations in place of many small ones
            alike = [(q, mask) for q, mask in zip(self.q, self.masks) if len(q) == width]
            q, mask = torch.stack([q for q, _ in alike]), torch.stack([mask for _, mask in alike])
            strength = (self.pace + (lasso - self.pace) * mask) / q.norm(dim=2).clamp(min=1e-12)
            gradients = [q.grad for q, _ in alike]
            torch._foreach_mul_(gradients, list(mask[:, :, None]))
            torch._foreach_add_(gradients, list(q * strength[:, :, None]))

    @staticmethod
    def _norms(q: Tensor) -> Tensor:
        return q.detach().norm(dim=1).clamp(min=1e-12)

    def _choose(self) -> None:
        """Masks the smallest rows: `granularity` more than before while above the target, then as many as needed."""
        scores = distributed.from_first([self._norms(q) for q in self.q])
        widths = scopes.Floors(self.units, **self.settings.floors)
        goal = widths.goal(self.sparsity)
        allowed = None if self.reached else self.dropped + self.granularity
        dropped = 0
        for layer, _ in scopes.ascending(scores, self.units):
            if widths.macs <= goal or dropped == allowed:
                break
            dropped += widths.drop(layer)
        self.reached, self.dropped = widths.macs <= goal, dropped
        for mask, score, width in zip(self.masks, scores, widths.rounded()):
            mask.copy_(scopes.best(score, width))

    def score(self, unit: ChannelUnits) -> Tensor:
        """‖Q_j‖; what is masked comes last."""
        index = [u.path for u in self.units].index(unit.path)
        return self._norms(self.q[index]) * self.masks[index]

    def select(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        keep = scopes.greedy_macs(scores, units, ratio, **self.settings.floors)
        if not self.attached:  # the question is only whether the target can be reached
            return keep
        alive = [score.cpu() >= DEAD for score in scores]
        if self.settings.round_to == 1:
            best = [scopes.best(score, max(1, self.settings.min_width)) for score in scores]
            keep = [k & (a | b) for k, a, b in zip(keep, alive, best)]
        return keep

    @torch.no_grad()
    def remove(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        units: Sequence[ChannelUnits],
        keep: Sequence[Tensor],
        images: Images,
    ) -> Removal:
        left = max(
            (float(self._norms(q)[~k.to(q.device)].max()) for q, k in zip(self.q, keep) if not k.all()), default=0
        )
        for q, kept in zip(self.q, keep):
            q[~kept.to(q.device)] = 0
        self.fold(model)
        removed = removal.cut_folded(model, graph, units, keep, images)
        return replace(removed, note=f"{removed.note}; largest row norm among those cut {left:.1e}")

    def release(self, model: nn.Module) -> None:
        """Nothing: `remove` folds, when rows that go are zero."""

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Q into the convolution and batch norm before it: K' = Q diag(γ/σ) K, b' = Q (β − μγ/σ)."""
        mixing: dict[str, Tensor] = {}  # maker -> (O, O)
        for unit, q in zip(self.units, self.q):
            for path, entries in made(model, self.graph, unit.channels):
                size = model.get_parameter(path).shape[0]
                matrix = mixing.setdefault(path, torch.eye(size, dtype=torch.double, device=q.device))
                matrix[entries[:, None], entries[None, :]] = q.double()
        self.grafts.detach(model)
        for path, matrix in mixing.items():
            folding.fold_matrix(model, self.graph, path, matrix)
        self.attached = False

    def state(self) -> dict[str, Tensor]:
        own = {"reached": torch.tensor(self.reached), "dropped": torch.tensor(self.dropped)}
        return own | {str(i): mask for i, mask in enumerate(self.masks)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.reached, self.dropped = bool(state["reached"]), int(state["dropped"])
        for i, mask in enumerate(self.masks):
            mask.copy_(state[str(i)])

    def report(self, model: nn.Module) -> str:
        kept = {u.path: int(mask.sum()) for u, mask in zip(self.units, self.masks)}
        cost = self.units[0].widths
        norms = [self._norms(q)[mask == 0] for q, mask in zip(self.q, self.masks)]
        largest = float(torch.cat(norms).max()) if any(len(n) for n in norms) else 0.0
        total = sum(u.count for u in self.units)
        return (
            f"masked {total - sum(kept.values())} of {total} channels, MACs {cost.macs(kept) / cost.dense:.3f}, "
            f"largest masked row {largest:.1e}"
        )


def compact(x: Tensor, q: Tensor) -> Tensor:
    """(B, D, …) -> (B, D, …), y_j = Σ_d Q_jd x_d."""
    return F.conv2d(x, q[:, :, None, None]) if x.ndim == 4 else F.linear(x, q)


def resrep(
    settings: Settings,
    *,
    lasso: float | None = None,
    compactor_momentum: float | None = None,
    mask_interval: int | None = None,
    granularity: int = 4,
    start: float = 0.05,
) -> Recipe:
    """Prunes while training, until the MACs have fallen by the share asked for.

    lasso: λ, throughout and for all rows; mask_interval: steps between choices of masks; granularity: channels more
    each time; start: share of the steps before the first choice.
    """
    if not settings.by_macs:
        raise BadInput("resrep removes MACs, from whichever layers: give --flops_target, not --pr_target")
    compactors = Compactors(settings, lasso, compactor_momentum, mask_interval, granularity, start)
    return Recipe(
        settings.channels(Foldable),
        compactors.score,
        compactors.select,
        schedules.prune_while_training,
        reach=partial(scopes.greedy_macs, **settings.floors),
        pressure=compactors,
        remove=compactors.remove,
    )
