"""OBS-style channels: those go that the layers which read them need least, and these layers are fitted anew.

Paper: as obs: Frantar and Alistarh, NeurIPS 2022, arXiv 2208.11580. The same elimination with blocks as high as the
    layer, so that all filters lose the same input channels
Code:  none known
Differs: as obs. The price of a channel is the sum over the layers that read it; what makes it has no say. It is divided
    by the multiply-accumulates that go with it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kerf.compress.methods.obs import Calibrated
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import removal
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.removal import Images, Removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.second_order.compensation import compensate
from kerf.compress.training.sample import Sample
from kerf.compress.units.channels import ChannelUnits


class ChannelSurgeon(Calibrated):
    """A criterion, the price of each channel to its readers, and a removal, which compensates in all layers."""

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], sample: Sample) -> None:
        paths = list(dict.fromkeys(path for u in units for path, _ in u.readers()))
        shapes = {path: model.get_parameter(path).shape for path in paths}
        self.look(model, graph, {path: (shape[0], shape[2:].numel()) for path, shape in shapes.items()}, sample)

    def score(self, unit: ChannelUnits) -> Tensor:
        readers = [(place, self.prices[place[0]]) for place in unit.readers() if place[0] in self.prices]
        price = torch.zeros(unit.count, dtype=torch.float64)
        for place, found in readers:
            price += found[0].cpu()[unit.channels.positions(place)].sum(1)
        return price / unit.macs.cpu()

    def remove(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        units: Sequence[ChannelUnits],
        keep: Sequence[Tensor],
        images: Images,
    ) -> Removal:
        supports: dict[str, Tensor] = {}
        for unit, kept in zip(units, keep):
            for place in unit.readers():
                weight = surgery.tensor_at(model, place[0])
                gone = unit.channels.entries(place, ~kept.cpu()).repeat_interleave(weight[0, 0].numel())
                stays = supports.get(place[0], torch.ones_like(weight, dtype=torch.bool).flatten(1))
                supports[place[0]] = stays & ~gone.to(weight.device)
        program = self.program(model, graph)
        made = compensate(program, self.batches, self.seen, lambda layer, _: supports.get(layer.name), self.damping)
        removed = removal.cut(model, graph, units, keep, images)
        return Removal(removed.graph, kept=removed.kept, note="; ".join(filter(None, [removed.note, made.note])))


def obs_channels(settings: Settings, *, images: int = 1024, damping: float = 0.01) -> Recipe:
    """Removes the channels of all layers that their readers need least for the MACs they cost; no training.

    images: training images that it is calibrated on, without their labels; damping: of the mean of the diagonal of what
    is inverted.
    """
    surgeon = ChannelSurgeon(images, damping, settings.seed)
    return Recipe(settings.channels(), surgeon.score, settings.pooled, remove=surgeon.remove, observe=surgeon.observe)
