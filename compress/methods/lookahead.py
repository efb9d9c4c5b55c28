"""Lookahead: weights go that matter least to the product of their layer with the ones before and behind it.

Paper: Park et al., "Lookahead: A Far-Sighted Alternative of Magnitude-based Pruning", ICLR 2020, arXiv 2002.04809
Code:  github.com/alinlab/lookahead_pruning
Differs: neighbours are those that the traced graph shows; the authors treat every network as a chain, in the order of
    its layers. Several makers or readers of a channel count as one layer whose rows or columns stand side by side, and
    depthwise filters, which stay dense, count with the layer before them. A share of floor(count · p) goes, where the
    authors round what stays. All layers are scored on the original weights ("base"); without the variants that score
    them in turn, look at activation rates, or rank all layers together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kerf.compress.network.graph import ChannelSet, DependencyGraph
from kerf.compress.network.surgery import depthwise
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.sample import Sample
from kerf.compress.units.channels import by_channel
from kerf.compress.units.weights import Weight, WeightUnits, averaged


class Lookahead:
    """score(W[i, j]) = W² · ‖row j of the layer before‖² · ‖column i of the layer behind‖², 1 for a missing one.

    Of larger units than weights it is the mean. With `batch_norm` a layer's rows are scaled by γ/σ of the norm behind
    it. Source: equation 4, squared.
    """

    def __init__(self, batch_norm: bool):
        self.batch_norm = batch_norm

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], _: Sample) -> None:
        self.factors = {}
        sides = {u.path: [torch.ones(n, dtype=torch.double) for n in u.shape[:2]] for u in units}
        for channels in graph.sets:
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
        """(O,) square of what the batch norm behind multiplies by."""
        norm = model.get_submodule(graph.norms[path]) if self.batch_norm and path in graph.norms else None
        if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d) or norm.weight is None or norm.running_var is None:
            return weight.new_ones(len(weight))
        return norm.weight.square() / (norm.running_var + norm.eps)

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


def lookahead(settings: Settings, *, batch_norm: int = 1) -> Recipe:
    """Removes, in every layer, the share p of its weights with the smallest score; then fine-tunes.

    batch_norm: 1 counts batch norms' scales as part of the layers before them, 0 leaves them out.
    """
    ahead = Lookahead(bool(batch_norm))
    return Recipe(Weight(full=settings.full), ahead.score, observe=ahead.observe)
