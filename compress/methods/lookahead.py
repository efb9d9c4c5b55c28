"""Lookahead: weights go that matter least to the product of their layer with the ones before and behind it.

Paper: Park et al., "Lookahead: A Far-Sighted Alternative of Magnitude-based Pruning", ICLR 2020, arXiv 2002.04809
Code:  github.com/alinlab/lookahead_pruning
Differs: neighbours are those that the traced graph shows; the authors treat every network as a chain, in the order of
    its layers. Several makers or readers of a channel count as one layer whose rows or columns stand side by side, and
    depthwise filters, which stay dense, count with the layer before them. A share of floor(count · p) goes, where the
    authors round what stays. With --set activation=1 a row is scaled by the root of its channel's mean rate over
    pixels, where the authors add up the roots of each pixel's. Without the variants that go from last to first, or rank
    all layers together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kerf.compress.measures import feature_maps
from kerf.compress.network.graph import ChannelSet, DependencyGraph
from kerf.compress.network.surgery import depthwise
from kerf.compress.pruning import scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.sample import Sample
from kerf.compress.units.channels import by_channel
from kerf.compress.units.weights import Weight, WeightUnits, averaged
from kerf.errors import BadInput


class Lookahead:
    """score(W[i, j]) = W² · ‖row j of the layer before‖² · ‖column i of the layer behind‖², 1 for a missing one.

    Of larger units than weights it is the mean. With `batch_norm` a layer's rows are scaled by γ/σ of the norm behind
    it, and with ``shown`` images by the root of the share of them in which a channel is active. Source: equation 4,
    squared.
    """

    def __init__(self, batch_norm: bool, shown: int = 0):
        self.batch_norm, self.shown = batch_norm, shown
        self.rates: dict[str, Tensor] = {}  # weight -> (O,) share of pixels at which each row is active
        self.factors: dict[str, list[Tensor]] = {}
        self.seen: tuple[nn.Module, DependencyGraph] | None = None

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], sample: Sample) -> None:
        self.seen = model, graph
        self.rates = active(model, graph, sample, self.shown) if self.shown else {}
        self._measure(model, graph, units)

    def forward(self, scores: Sequence[Tensor], units: Sequence[WeightUnits], ratio: float) -> list[Tensor]:
        """A scope: from the first layer to the last, each scored when those before it have lost what they lose."""
        assert self.seen is not None  # observe has been called
        model, graph = self.seen
        before = {u.path: model.get_parameter(u.path).detach().clone() for u in units}
        chosen = []
        with torch.no_grad():
            for unit in units:
                self._measure(model, graph, [unit])
                chosen += scopes.local([self.score(unit)], [unit], ratio)
                model.get_parameter(unit.path).mul_(unit.mask(chosen[-1].to(before[unit.path].device)))
            for path, weight in before.items():  # it is removal that prunes
                model.get_parameter(path).copy_(weight)
        return chosen

    def _measure(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits]) -> None:
        sides = {u.path: [torch.ones(n, dtype=torch.double) for n in u.shape[:2]] for u in units}
        for channels in graph.sets:
            if not any(path in sides for path, _ in channels.places):
                continue
            made, read = self._made(model, graph, channels), self._read(model, graph, channels)
            for path, axis in channels.places:
                if path in sides:
                    positions = channels.positions((path, axis))
                    sides[path][axis][positions] = (made if axis else read).cpu()[:, None].expand(positions.shape)
        for path, (outgoing, incoming) in sides.items():
            weight = model.get_parameter(path)
            own = self._scale(model, graph, path, weight).double().cpu()
            self.factors[path] = [(own * outgoing).to(weight), incoming.to(weight)]

    def score(self, unit: WeightUnits) -> Tensor:
        outgoing, incoming = self.factors[unit.path]
        factors = outgoing[:, None] * incoming[None, :]  # (O, I)
        return averaged(unit, (unit.weight().reshape(*factors.shape, -1).square() * factors[:, :, None]).flatten())

    def _scale(self, model: nn.Module, graph: DependencyGraph, path: str, weight: Tensor) -> Tensor:
        """(O,) square of what the batch norm behind multiplies by, times the rate of activation."""
        rate = self.rates.get(path, weight.new_ones(len(weight))).to(weight)
        norm = model.get_submodule(graph.norms[path]) if self.batch_norm and path in graph.norms else None
        if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d) or norm.weight is None or norm.running_var is None:
            return rate
        return rate * norm.weight.square() / (norm.running_var + norm.eps)

    def _rows(self, model: nn.Module, graph: DependencyGraph, channels: ChannelSet, path: str) -> Tensor:
        """(width,) squared norms of the filters that own each channel."""
        weight = model.get_parameter(path)
        rows = weight.double().flatten(1).square().sum(1) * self._scale(model, graph, path, weight)
        return by_channel(rows, channels, (path, 0)).sum(1)

    def _passed(self, model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> Tensor:
        """(width,) product over the depthwise filters that the channels pass."""
        product = torch.ones(channels.width, dtype=torch.double, device=next(model.parameters()).device)
        for path in depthwise(model, channels):
            product = product * self._rows(model, graph, channels, path)
        return product

    def _made(self, model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> Tensor:
        """(width,) squared norm of all that makes a channel, for the layers that read it."""
        if not channels.makers:
            return torch.ones(channels.width, dtype=torch.double)
        made = sum(self._rows(model, graph, channels, path) for path in channels.makers)
        return made * self._passed(model, graph, channels)

    def _read(self, model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> Tensor:
        """(width,) squared norm of all that reads a channel, for the layers that make it."""
        places = channels.columns
        if not places:
            return torch.ones(channels.width, dtype=torch.double)
        columns = [(p, model.get_parameter(p).double().transpose(0, 1).flatten(1).square().sum(1)) for p, _ in places]
        read = sum(by_channel(c, channels, (path, 1)).sum(1) for path, c in columns)
        return read * self._passed(model, graph, channels)


def active(model: nn.Module, graph: DependencyGraph, sample: Sample, images: int) -> dict[str, Tensor]:
    """Weight -> (O,) share of the pixels of these images at which what it makes is not zero for the layers behind."""
    sets = [_Made(s.name, s) for s in graph.sets if s.makers and all(s.copies((p, 0)) == 1 for p in s.makers)]
    read = [made for made in sets if made.channels.columns]  # the last layer is read by none
    found = feature_maps.mean(model, graph, read, sample, images, lambda maps: maps.ne(0).double().mean((2, 3)))
    rates: dict[str, Tensor] = {}
    for made in read:
        for path in made.channels.makers:
            own = rates.setdefault(path, torch.ones(len(model.get_parameter(path)), dtype=torch.double))
            own[made.channels.positions((path, 0))[:, 0]] = found[made.path].cpu()
    return rates


@dataclass(frozen=True)
class _Made:
    path: str
    channels: ChannelSet


ORDERS = "base", "forward"


def lookahead(
    settings: Settings, *, batch_norm: int = 1, order: str = "base", activation: int = 0, shown: int = 6400
) -> Recipe:
    """Removes, in every layer, the share p of its weights with the smallest score; then fine-tunes.

    batch_norm: 1 counts batch norms' scales as part of the layers before them, 0 leaves them out; order: base scores
    all layers on the weights given, forward from the first to the last, behind layers that are pruned already;
    activation: 1 scales rows by how often their channels are active, on so many training images as `shown` says.
    """
    if order not in ORDERS:
        raise BadInput(f"order is {order!r}: expected one of {', '.join(ORDERS)}")
    if activation and shown < 1:
        raise BadInput(f"shown is {shown}: expected at least 1 image")
    ahead = Lookahead(bool(batch_norm), shown if activation else 0)
    return Recipe(
        Weight(full=settings.full),
        ahead.score,
        scopes.local if order == "base" else ahead.forward,
        observe=ahead.observe,
        reach=scopes.local,
    )
