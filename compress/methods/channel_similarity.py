"""Channel-similarity-style: channels that carry the same are clustered, and one of each cluster stands for all.

Paper: Zhang et al., "Exploiting Channel Similarity for Accelerating Deep Convolutional Neural Networks", 2019,
    arXiv 1908.02620 (the abstracts alone were read)
Code:  none known
Differs: filled in are the metric (the expected squared difference of two normals, as batch norm leaves them), average
    linkage, one height for all layers to cut the trees at, the representative (largest |γ| · norm of what reads it) and
    its inheritance. The paper claims to need no data; here correlations are measured on images unless told otherwise.
    Behind depthwise filters, which differ, representatives inherit nothing. Layers without a batch norm of their own
    stay whole. The regression by which readers are scaled is that of normalised maps, before the ReLU that readers see.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from kerf.compress.measures import moments
from kerf.compress.measures.clusters import CORRELATIONS, clusters, distances
from kerf.compress.network import surgery
from kerf.compress.network.graph import ChannelSet, DependencyGraph
from kerf.compress.pruning import removal
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.removal import Images, Removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.sample import Sample, first
from kerf.compress.units.channels import Channel, ChannelUnits, by_channel
from kerf.errors import BadInput


@dataclass(frozen=True)
class Normal(Channel):
    """Channels that one layer makes, each by one filter, with a batch norm of its own."""

    def split(self, model: nn.Module, graph: DependencyGraph, example: Tensor) -> tuple[ChannelUnits, ...]:
        def normal(made: ChannelSet) -> bool:
            path = graph.norms.get(made.makers[0])
            norm = model.get_submodule(path) if path is not None else None
            return getattr(norm, "weight", None) is not None and made.copies((made.makers[0], 0)) == 1

        return tuple(u for u in super().split(model, graph, example) if normal(u.channels))


class Similarity:
    def __init__(self, scope: Callable[..., list[Tensor]], correlation: str, images: int, inherit: bool):
        if correlation not in CORRELATIONS:
            raise BadInput(f"correlation is {correlation!r}: expected one of {', '.join(CORRELATIONS)}")
        self.scope, self.correlation, self.images, self.inherit = scope, CORRELATIONS[correlation], images, inherit
        self.trees: dict[str, list[tuple[int, int]]] = {}
        self.heights: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}
        self.slope: dict[str, Tensor] = {}

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], sample: Sample) -> None:
        norms = {u.path: graph.norms[u.channels.makers[0]] for u in units}
        measured = moments.correlations(model, list(norms.values()), first(sample, self.images))
        for unit in units:
            channels, norm = unit.channels, norms[unit.path]
            order = channels.positions((channels.makers[0], 0))[:, 0]
            gamma, beta = (
                model.get_parameter(f"{norm}.{name}").detach().double().cpu()[order] for name in ("weight", "bias")
            )
            rho = self.correlation(measured[norms[unit.path]].cpu()[order][:, order], gamma)
            apart = distances(beta, gamma, rho)
            apart /= apart.sum().clamp(min=1e-12) / (unit.count * (unit.count - 1))  # layers become comparable
            tree = linkage(squareform(apart.numpy(), checks=False), "average")
            self.trees[unit.path] = [(int(a), int(b)) for a, b, *_ in tree]
            self.heights[unit.path] = torch.cat([torch.from_numpy(tree[:, 2].copy()), torch.tensor([torch.inf])])
            readers = [(surgery.tensor_at(model, path), path) for path, _ in channels.columns]
            columns = [by_channel(w.detach().transpose(0, 1).flatten(1), channels, (p, 1)) for w, p in readers]
            reading = torch.stack([c.flatten(1).square().sum(1).cpu() for c in columns]).sum(0)
            self.importance[unit.path] = gamma.abs() * reading.sqrt()
            self.slope[unit.path] = (rho * gamma[:, None] / gamma[None, :]).nan_to_num(0, 0, 0).clamp(min=0)  # j on i
            if not self.inherit or surgery.depthwise(model, channels):
                self.slope[unit.path].zero_()

    def score(self, unit: ChannelUnits) -> Tensor:
        """(count,) not of channels: the heights at which one cluster fewer is left. The last one has none."""
        return self.heights[unit.path]

    def select(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        keep = self.scope(scores, units, ratio)
        self.into = {}
        for unit, kept in zip(units, keep):
            labels, importance = clusters(self.trees[unit.path], int(kept.sum())), self.importance[unit.path]
            best = [(labels == label).double().mul(importance + 1).argmax() for label in labels]
            self.into[unit.path] = torch.stack(best)
        return [self.into[u.path] == torch.arange(u.count) for u in units]

    def remove(
        self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], keep: Sequence[Tensor], _: Images
    ) -> Removal:
        shares = {path: self.slope[path].gather(1, into[:, None])[:, 0] for path, into in self.into.items()}
        kept = removal.by_set(units, keep)
        return Removal(surgery.merge(model, graph, self.into, shares), kept=kept, note=removal.describe(kept))


def channel_similarity(
    settings: Settings, *, correlation: str = "measured", images: int = 640, inherit: int = 1
) -> Recipe:
    """Clusters the channels of every layer and keeps one of each cluster; then fine-tunes.

    correlation: measured, none, or sign (none and sign need no data); images: training images it is measured on;
    inherit: 1 adds what read the others to what reads the representative, scaled by the regression of them on it.
    """
    if settings.residual:
        raise BadInput("channel_similarity compares what one batch norm makes, not sums: leave --residual out")
    scope = settings.pooled
    alike = Similarity(scope, correlation, images, bool(inherit))
    channels = settings.channels(Normal)
    return Recipe(channels, alike.score, alike.select, remove=alike.remove, observe=alike.observe, reach=scope)
