"""Centripetal SGD: filters of a cluster are trained to become equal, then all but one of each are trimmed.

Paper: Ding et al., "Centripetal SGD for Pruning Very Deep Convolutional Networks with Complicated Structure",
    CVPR 2019, arXiv 1904.03837; journal version arXiv 2107.14444
Code:  github.com/DingXiaoH/Centripetal-SGD
Differs: means over clusters are sums over segments, where the authors multiply by D×D matrices. Clusters are taken for
    a set of channels, so residual sums, concatenations, depthwise filters and gates share them by construction. Short
    runs get their own strength: ε such that differences shrink by exp(-15) also where a tenth of it acts; the authors'
    3e-3 (CIFAR) is what 600 epochs come out at. Momentum is Nesterov's only with --nesterov (theirs is). How equal the
    clusters are is reported before trimming. k-means begins from one draw of centres (scikit-learn's default, which the
    authors leave it at, was the best of ten then), and from the run's seed (theirs has none). All parameters have the
    same rate and decay; the authors' biases learn twice as fast, and theirs and the batch norms' do not decay.
"""

from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import removal, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.removal import Images, Removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.pressure import Plan, Pressure
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput

SHRINK = 15.0  # differences are to fall by exp(-SHRINK)
VECTOR_STRENGTH = 0.1  # of ε, on biases, γ and β


def kmeans(rows: Tensor, count: int, seed: int) -> Tensor:
    """(n, elems) -> (n,) labels of exactly `count` clusters, as alike inside as k-means makes them."""
    labels = KMeans(count, n_init=1, random_state=seed).fit_predict(rows.cpu().double().numpy())
    labels = torch.as_tensor(labels).long()
    # equal filters can leave clusters empty: those take members of the largest ones
    for empty in sorted(set(range(count)) - set(labels.tolist())):
        largest = labels.bincount(minlength=count).argmax()
        labels[(labels == largest).nonzero()[-1]] = empty
    return labels


def even(rows: Tensor, count: int, _: int) -> Tensor:
    """Runs of neighbours, as equally long as can be."""
    return torch.arange(len(rows)) * count // len(rows)


def biased(rows: Tensor, count: int, _: int) -> Tensor:
    """The first cluster takes all that is too much; the others hold one filter."""
    return (torch.arange(len(rows)) - (len(rows) - count)).clamp(min=0)


CLUSTERINGS = {"kmeans": kmeans, "even": even, "biased": biased}


class Centripetal(Pressure):
    """For filter j of cluster C: direction = mean_C ∂L/∂F + η F_j + ε (F_j − mean_C F).

    η is the optimiser's weight decay. Filters F_j are the rows of every kernel that carries the channels, with ε, and
    the entries of every vector, with ε/10.
    """

    def __init__(self, settings: Settings, strength: float | None, clusters: str):
        if clusters not in CLUSTERINGS:
            raise BadInput(f"clusters is {clusters!r}: expected one of {', '.join(CLUSTERINGS)}")
        self.settings, self.asked, self.clusters = settings, strength, clusters

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        keep = self.widths([u.sizes.float() for u in units], units, plan.sparsity)
        cluster = CLUSTERINGS[self.clusters]
        self.units = units
        self.into: dict[str, Tensor] = {}  # set -> (width,) the first channel of the cluster each is in
        found = [cluster(unit.rows(), int(kept.sum()), self.settings.seed) for unit, kept in zip(units, keep)]
        for unit, labels in zip(units, distributed.from_first(found)):
            first = torch.stack([(labels == label).nonzero()[0, 0] for label in labels])
            self.into[unit.path] = first
        self.strength = self.asked or 0.0
        if not self.strength:
            # without momentum Δ ← (1 − τ ε) Δ; with momentum μ each gradient acts 1 / (1 − μ) times
            each = VECTOR_STRENGTH / (1 - plan.momentum)
            self.strength = min(SHRINK / (each * max(plan.travel(), 1e-9)), 1 / plan.peak)  # above 2 / τ it would swing
        self.parameters = dict(model.named_parameters())
        self._index()
        self.attached = True

    def _index(self) -> None:
        """Per parameter, which entries of axis 0 are in one cluster: all vectors end to end, and each kernel."""
        parameters = self.parameters
        index: dict[str, Tensor] = {}
        for unit in self.units:
            for (path, axis), owner in unit.channels.places.items():
                if axis == 0 and path in parameters:
                    own = index.setdefault(path, torch.arange(len(owner)))
                    copies = unit.channels.positions((path, axis))
                    own[copies] = own[copies[self.into[unit.path]]]
        self.kernels = {
            path: _Segments(own, parameters[path]) for path, own in index.items() if parameters[path].ndim > 1
        }
        self.vectors = [p for p in index if parameters[p].ndim == 1 and parameters[p].requires_grad]
        offset, joined = 0, []
        for path in self.vectors:
            joined.append(index[path] + offset)
            offset += len(index[path])
        self.vector = _Segments(torch.cat(joined), next(iter(parameters.values()))) if joined else None

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module, step: int) -> None:
        parameters = self.parameters
        for path, segments in self.kernels.items():
            weight = parameters[path]
            if weight.grad is not None:
                weight.grad = segments.centripetal(weight, weight.grad, self.strength)
        values: list[Tensor] = [parameters[path] for path in self.vectors]
        if self.vector and values:
            joined = torch.cat(values), torch.cat([v.new_zeros(v.shape) if v.grad is None else v.grad for v in values])
            directions = self.vector.centripetal(*joined, VECTOR_STRENGTH * self.strength)
            for value, direction in zip(values, directions.split([len(v) for v in values])):
                value.grad = direction

    def deviation(self, model: nn.Module) -> dict[str, float]:
        """How far clusters are from being one point, at most; 0 when they are.

        kernels: ‖F_j − mean F‖ / ‖mean F‖; vectors and statistics: |v_j − mean v| / root mean square of the vector.
        """
        kernels = [s.deviation(self.parameters[path]) for path, s in self.kernels.items()]
        apart: dict[str, list[float]] = {"kernels": kernels, "vectors": [], "statistics": []}
        for unit in self.units:
            into = self.into[unit.path]
            for path, axis in unit.channels.places:
                tensor = surgery.tensor_at(model, path)
                if axis == 0 and tensor.ndim == 1:
                    values = tensor.detach()[unit.channels.positions((path, axis)).to(tensor.device)]
                    size = tensor.detach().square().mean().sqrt().clamp(min=1e-12)
                    kind = "vectors" if path in self.parameters else "statistics"
                    apart[kind].append(float((values - values[into]).abs().max() / size))
        return {kind: max(values, default=0.0) for kind, values in apart.items()}

    def report(self, model: nn.Module) -> str:
        apart = ", ".join(f"{kind} {value:.1e}" for kind, value in self.deviation(model).items())
        return f"clusters apart by at most: {apart}"

    def widths(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        """How many clusters each set gets: the same share everywhere. Which filters, the clusters say later."""
        return self.settings.uniform(scores, units, ratio)

    def select(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        return [self.into[u.path] == torch.arange(u.count) for u in units]

    def remove(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        units: Sequence[ChannelUnits],
        keep: Sequence[Tensor],
        _: Images,
    ) -> Removal:
        note = self.report(model)
        kept = removal.by_set(units, keep)
        left = surgery.merge(model, graph, self.into)
        return Removal(left, kept=kept, note=f"{removal.describe(kept)}; {note}")

    def state(self) -> dict[str, Tensor]:
        return dict(self.into)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.into = dict(state)
        self._index()


class _Segments:
    """Means over entries of axis 0 that belong together."""

    def __init__(self, first: Tensor, like: Tensor):
        _, index, counts = first.unique(return_inverse=True, return_counts=True)
        self.index, self.clusters = index.to(like.device), len(counts)
        self.share = (1 / counts[index]).to(like.device, like.dtype)  # of each entry in its mean
        self.merged = bool((counts > 1).any())

    def mean(self, values: Tensor) -> Tensor:
        """(O, …) -> (O, …): in the place of every entry the mean of its cluster."""
        share = self.share.view(-1, *[1] * (values.ndim - 1))
        sums = values.new_zeros(self.clusters, *values.shape[1:]).index_add_(0, self.index, values * share)
        return sums.index_select(0, self.index)

    def centripetal(self, weight: Tensor, gradient: Tensor, strength: float) -> Tensor:
        """mean(g) + ε (w − mean(w)), in one pass: mean(g − ε w) + ε w."""
        if not self.merged:
            return gradient
        return self.mean(gradient - strength * weight).add_(weight, alpha=strength)

    @torch.no_grad()
    def deviation(self, weight: Tensor) -> float:
        if not self.merged:
            return 0.0
        mean = self.mean(weight)
        apart, size = (weight - mean).flatten(1).norm(dim=1), mean.flatten(1).norm(dim=1)
        return float((apart / size.clamp(min=1e-12)).max())


def csgd(settings: Settings, *, strength: float | None = None, clusters: str = "kmeans") -> Recipe:
    """Merges filters while training: the same share of every layer, residual sums included.

    strength: ε; clusters: kmeans, even or biased.
    """
    centripetal = Centripetal(settings, strength, clusters)
    return Recipe(
        settings.channels(residual=True),
        lambda u: u.sizes.float(),
        centripetal.select,
        schedules.prune_while_training,
        pressure=centripetal,
        reach=settings.uniform,
        remove=centripetal.remove,
    )
