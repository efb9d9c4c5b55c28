"""PCONV-style: every 3×3 kernel is held to one of a few patterns of four entries, and whole kernels go beside.

Paper: Ma et al., "PCONV: The Missing but Desirable Sparsity in DNN Weight Pruning for Real-time Execution on Mobile
    Devices", AAAI 2020, arXiv 1909.05073; Niu et al., "PatDNN: Achieving Real-Time DNN Execution on Mobile Devices with
    Pattern-based Weight Pruning", ASPLOS 2020, arXiv 2001.00138 (patterns mined from the network, --set mined=8)
Code:  none of the authors'; the rounds and both ρ are those of public re-implementations
Differs: neither paper was read in full. The share asked for is a share of each layer's weights, and exactly met: first
    kernels lose what lies outside their patterns, those that lose least first (all of them from 5/9 on), then kernels
    go whole; layers that are not 3×3 lose whole kernels alone. The rounds fill the phase, in place of five epochs each,
    but are no shorter than what momentum remembers; SGD takes Adam's place. Both ρ are multiplied so that a weight that
    nothing holds ends near a hundredth of itself; they come out at 1e-4 where the phase is long enough. Kernels go by
    their L2 norm in the layer (the public codes), or with --set balance=filter equally many of every filter (the
    paper). That the four patterns are the centre and three edges was read second-hand. Phones' code generation is not
    here: fkw.py stores the result in the paper's order, but kernels that skip 1×N blocks compute the zeros inside a
    kept kernel, so patterns make a network smaller, not faster.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import Plan, Pressure
from kerf.compress.training.sample import Sample
from kerf.compress.units.weights import Patterns, WeightUnits, nearest
from kerf.errors import BadInput

CENTRE, EDGES = 4, (1, 3, 5, 7)  # of nine entries, row by row
PULL = 20.0  # Σ ρ · rate / (1 − momentum) over the phase at least: what nothing holds ends near a hundredth of itself
BALANCES = ("layer", "filter")

Projection = Callable[[Tensor], Tensor]


def patterns(taps: Sequence[Sequence[int]]) -> Tensor:
    """bool (P, 9), True at these entries."""
    library = torch.zeros(len(taps), 9, dtype=torch.bool)
    for row, entries in zip(library, taps):
        row[list(entries)] = True
    return library


T_SHAPES = patterns([[CENTRE, *(e for e in EDGES if e != left_out)] for left_out in EDGES])  # no up, left, right, down
CANDIDATES = patterns([sorted((CENTRE, *c)) for c in combinations([i for i in range(9) if i != CENTRE], 3)])


def most_frequent(kernels: Tensor, size: int) -> Tensor:
    """bool (size, 9): those of the 56 patterns with the centre that are nearest to most of the kernels (K, 9)."""
    counts = nearest(kernels, CANDIDATES).bincount(minlength=len(CANDIDATES))
    return CANDIDATES[counts.sort(descending=True, stable=True).indices[:size].cpu()]


def going(unit: WeightUnits, ratio: float) -> list[int]:
    """How many units of each part go: what lies outside patterns, then within; or kernels."""
    each = unit.shape[0] * unit.shape[1]
    sizes = unit.sizes[::each].tolist()
    left, found = math.floor(sum(sizes) * each * ratio + 1e-9), []
    for size in sizes:
        found.append(min(each, left // size))
        left = left - found[-1] * size if found[-1] == each else 0
    return found


def smallest(scores: Tensor, count: int, balanced: bool = False) -> Tensor:
    """(O, I) -> bool (O, I), True at the `count` smallest; balanced: as many of every row, or one more."""
    gone = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if balanced:
        ranks = scores.argsort(dim=1, stable=True).argsort(dim=1, stable=True)  # whole columns of ranks go first
        order = scores.flatten().argsort(stable=True)
        order = order[ranks.flatten()[order].argsort(stable=True)]
    else:
        order = scores.flatten().argsort(stable=True)
    gone[order[:count]] = True
    return gone.view(scores.shape)


def patterned(
    scores: Sequence[Tensor], units: Sequence[WeightUnits], ratio: float, *, balanced: bool = False
) -> list[Tensor]:
    """A scope: of every layer by itself the share `ratio` of the weights, first from outside patterns, then kernels."""
    if not 0 <= ratio <= 1:
        raise BadInput(f"pruning ratio is {ratio}; expected a share between 0 and 1")
    keep = []
    for score, unit in zip(scores, units, strict=True):
        counts = going(unit, ratio)
        *outside, kernels = score.view(len(counts), *unit.shape[:2])
        gone = [smallest(part, n) for part, n in zip(outside, counts)] + [smallest(kernels, counts[-1], balanced)]
        keep.append(~torch.stack(gone).flatten())
    return keep


def score(unit: WeightUnits) -> Tensor:
    """L2: of what lies outside a kernel's pattern, and of the whole kernel for what lies within."""
    squares = unit.rows().square().sum(1).view(-1, unit.shape[0] * unit.shape[1])
    return squares.cumsum(0).sqrt().flatten()


def to_patterns(weight: Tensor, library: Tensor, count: int) -> Tensor:
    """Π_S: the `count` kernels of (O, I, 3, 3) that lose least become zero outside their nearest patterns."""
    kernels = weight.reshape(-1, 9)
    outside = ~library.to(weight.device)[nearest(kernels, library)]
    gone = smallest((kernels.square() * outside).sum(1)[None], count).view(-1, 1)
    return kernels.masked_fill(outside & gone, 0).view(weight.shape)


def to_connections(weight: Tensor, count: int, balanced: bool) -> Tensor:
    """Π_S': the `count` kernels of (O, I, …) with the smallest L2 norms become zero."""
    gone = smallest(weight.reshape(*weight.shape[:2], -1).square().sum(2), count, balanced)
    return weight.masked_fill(gone.view(*gone.shape, *[1] * (weight.ndim - 2)), 0)


class Constraint:
    """One weight, held near one set: ρ/2 ‖W − Z + U‖², with Z in the set."""

    def __init__(self, project: Projection, weight: nn.Parameter, rho: float):
        self.project, self.weight, self.rho = project, weight, rho
        self.z, self.u = project(weight.detach()), torch.zeros_like(weight)

    def pull(self) -> None:
        """∂L/∂W ← ∂L/∂W + ρ (W − Z + U)."""
        if self.weight.grad is not None:
            self.weight.grad.add_(self.weight - self.z + self.u, alpha=self.rho)

    def update(self) -> int:
        """Z ← Π(W + U), U ← U + W − Z. Returns how many kernels have other entries than before."""
        before, self.z = self.z, self.project(self.weight + self.u)
        self.u = self.u + self.weight - self.z
        other = (self.z != 0) != (before != 0)
        return int(other.reshape(*other.shape[:2], -1).any(2).sum())

    def distance(self) -> float:
        return float((self.weight - self.z).norm() / self.weight.norm().clamp(min=1e-30))


class Admm(Pressure):
    """A constraint for patterns and one for connections on every layer, by alternating directions."""

    def __init__(self, library: Tensor, mined: int, rho: tuple[float, float], rounds: int, balanced: bool):
        self.library, self.mined, self.rho, self.rounds, self.balanced = library, mined, rho, rounds, balanced

    @torch.no_grad()
    def mine(self, units: Sequence[WeightUnits], model: nn.Module) -> None:
        weights = [model.get_parameter(u.path).detach() for u in units if u.shape[2:] == (3, 3)]
        if self.mined and weights:
            kernels = torch.cat([w.reshape(-1, 9).cpu() for w in weights])
            self.library.copy_(most_frequent(kernels, self.mined))

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], sample: Sample) -> None:
        if not self.attached:
            self.mine(units, model)

    @torch.no_grad()
    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], plan: Plan) -> None:
        self.mine(units, model)
        self.interval = max(math.ceil(2 / (1 - plan.momentum)), plan.steps // self.rounds)
        travel = plan.travel() / (1 - plan.momentum)
        speed = max(1.0, PULL / max(travel * max(self.rho), 1e-30)) if max(self.rho) else 1.0
        self.constraints, self.changed = [], 0.0
        for unit in units:
            weight = model.get_parameter(unit.path)
            *patterned, gone = going(unit, plan.sparsity)
            for count in patterned:
                project = partial(to_patterns, library=self.library, count=count)
                self.constraints.append(Constraint(project, weight, self.rho[0] * speed))
            project = partial(to_connections, count=gone, balanced=self.balanced)
            self.constraints.append(Constraint(project, weight, self.rho[1] * speed))
        self.attached = True

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        if step and step % self.interval == 0:
            kernels = sum(c.z.shape[0] * c.z.shape[1] for c in self.constraints)
            self.changed = sum([c.update() for c in self.constraints]) / kernels
        for constraint in self.constraints:
            constraint.pull()

    def fold(self, model: nn.Module) -> None:
        self.attached = False
        self.constraints = []

    def state(self) -> dict[str, Tensor]:
        own = {"library": self.library, "changed": torch.tensor(self.changed)}
        for i, constraint in enumerate(self.constraints):
            own |= {f"z.{i}": constraint.z, f"u.{i}": constraint.u}
        return own

    def restore(self, state: dict[str, Tensor]) -> None:
        self.library.copy_(state["library"])
        self.changed = float(state["changed"])
        for i, constraint in enumerate(self.constraints):
            constraint.z = torch.empty_like(constraint.z).copy_(state[f"z.{i}"])
            constraint.u = torch.empty_like(constraint.u).copy_(state[f"u.{i}"])

    @torch.no_grad()
    def report(self, model: nn.Module) -> str:
        far = max((c.distance() for c in self.constraints), default=0.0)
        return (
            f"kernels that changed pattern in the last round {self.changed:.1%}, farthest layer from its set {far:.2f}"
        )


def pconv(
    settings: Settings,
    *,
    mined: int = 0,
    pattern_rho: float = 1e-4,
    kernel_rho: float = 1e-4,
    rounds: int = 30,
    balance: str = "layer",
) -> Recipe:
    """Holds 3×3 kernels to patterns of four entries while training, then zeroes the rest, and the smallest kernels.

    mined: how many patterns to take from the network's own kernels (PatDNN has 8); 0: PCONV's four T shapes;
    pattern_rho, kernel_rho: both ρ of ADMM; rounds: of it; balance: layer, or filter for equal work in each.
    """
    if balance not in BALANCES:
        raise BadInput(f"balance is {balance!r}: expected one of {', '.join(BALANCES)}")
    if not 0 <= mined <= len(CANDIDATES):
        raise BadInput(f"mined is {mined}: expected 0, or at most the {len(CANDIDATES)} patterns that there are")
    if rounds < 1 or min(pattern_rho, kernel_rho) < 0:
        raise BadInput(f"rounds is {rounds}, the smaller ρ {min(pattern_rho, kernel_rho)}: expected at least 1 and 0")
    library = (CANDIDATES[:mined] if mined else T_SHAPES).clone()
    admm = Admm(library, mined, (pattern_rho, kernel_rho), rounds, balance == "filter")
    return Recipe(
        Patterns(library, settings.full),
        score,
        partial(patterned, balanced=balance == "filter"),
        schedules.press_trained,
        pressure=admm,
        observe=admm.observe,
    )
