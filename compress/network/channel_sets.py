"""ChannelSet: channels of one width, any of which can be cut out of the network, everywhere it occurs.

Where a Group says which channels may change places, a set says which leave together: two questions with two answers.
The halves of a chunk may be ordered freely but have to stay equally large; the inputs of a grouped convolution may not
move at all, yet one of every group can go. A set holds the channels that occur in the same places, so that it is one
number in a table of widths: the filters of one layer, or of all layers whose outputs are added.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from kerf.compress.network.labels import Channels

Path = str
Place = tuple[Path, int]  # parameter or buffer, axis


@dataclass(frozen=True, eq=False)
class ChannelSet:
    """Channel i of `width` is cut by removing, at every place, the entries that i owns."""

    name: str  # of the layer that makes the channels first
    width: int
    whole: int  # the width when the network was traced
    places: Mapping[Place, Tensor]  # (axis length,) int: the channel that owns each entry, -1 for those of other sets
    makers: tuple[Path, ...]  # weights (O, I, kh, kw) or (O, I) whose filters add up to the channels
    gates: tuple[Path, ...] = ()  # weights whose outputs multiply them, as squeeze-excitation does
    # (module, "before" or "after") -> (amount,) owners of the zero channels that it adds there
    pads: Mapping[tuple[Path, str], Tensor] = field(default_factory=dict)
    fixed: bool = False  # seen from outside the network, or counted in its code
    transposed: frozenset[Path] = frozenset()  # weights (I, O, …) among the places
    weights: frozenset[Path] = frozenset()  # (O, I, …) of layers among the places

    @property
    def columns(self) -> list[Place]:
        """Where layers read the channels as columns of their weights, but for transposed convolutions."""
        return [(path, axis) for path, axis in self.places if axis == 1 and path in self.weights]

    @property
    def reads(self) -> list[Place]:
        """Where layers read the channels: columns of their weights, rows of transposed ones."""
        return [*self.columns, *((path, axis) for path, axis in self.places if axis == 0 and path in self.transposed)]

    def entries(self, place: Place, chosen: Tensor) -> Tensor:
        """(axis length,) bool: the entries at `place` that the channels `chosen`, bool (width,), own."""
        owner = self.places[place]
        return (owner >= 0) & chosen.cpu()[owner.clamp(min=0)]

    def positions(self, place: Place) -> Tensor:
        """(width, copies): where the entries of each channel are; H·W copies behind a flatten, otherwise one."""
        owner = self.places[place]
        return owner.argsort(stable=True)[int((owner < 0).sum()) :].view(self.width, -1)

    def copies(self, place: Place) -> int:
        return int((self.places[place] == 0).sum())

    def narrowed(self, keep: Tensor | None, gone: Mapping[Place, Tensor]) -> "ChannelSet":
        """The set when only the channels `keep` are left, and each axis has lost its entries in `gone`."""
        keep = torch.ones(self.width, dtype=torch.bool) if keep is None else keep.cpu()
        renumbered = torch.where(keep, keep.cumsum(0) - 1, -1)

        def follow(owner: Tensor) -> Tensor:
            return torch.where(owner >= 0, renumbered[owner.clamp(min=0)], -1)

        places = {
            place: follow(owner)[~gone[place]] if place in gone else owner for place, owner in self.places.items()
        }
        pads = {pad: follow(owner[(owner < 0) | keep[owner.clamp(min=0)]]) for pad, owner in self.pads.items()}
        return replace(self, width=int(keep.sum()), places=places, pads=pads)


def channel_sets(model: nn.Module, channels: Channels) -> tuple[ChannelSet, ...]:
    """All sets, those that cannot be cut included, in the order in which the network makes them."""
    leader = _leaders(model, channels)
    axes = {place: [leader(x) for x in labels.tolist()] for place, labels in (channels.axes | channels.columns).items()}
    pads = {
        (path, side): [leader(x) for x in labels.tolist()]
        for path, both in channels.pads.items()
        for side, labels in zip(("before", "after"), both)
    }
    fixed = {leader(label) for label in channels.fixed | channels.counted}
    occurs: dict[int, dict[Place, None]] = defaultdict(dict)
    for place, ids in axes.items():
        for channel in ids:
            occurs[channel][place] = None
    share = {place: Counter(ids) for place, ids in axes.items()}
    members: dict[tuple, list[int]] = defaultdict(list)
    for channel, places in occurs.items():
        # one channel may own more entries of an axis than another: then they are not one width
        counts = tuple(share[place][channel] for place in places)
        members[frozenset(places), counts, channel in fixed].append(channel)

    names: dict[str, int] = {}
    sets = []
    for (places, _, is_fixed), ids in members.items():
        index = {channel: i for i, channel in enumerate(ids)}

        def owners(entries: list[int], index: dict[int, int] = index) -> Tensor:
            return torch.tensor([index.get(channel, -1) for channel in entries], dtype=torch.long)

        ordered = [place for place in axes if place in places]
        made = [path for path, axis in ordered if axis == 0 and path in channels.producers]
        gates = tuple(path for path in made if set(channels.axes[path, 0].tolist()) <= channels.gates)
        makers = tuple(path for path in made if path not in gates)
        path = (makers or made or (ordered[0][0],))[0]
        reads = ordered[0] == (path, 1) and path not in channels.transposed
        name = ("input of " if reads and not made else "") + (path.rpartition(".")[0] or path)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        sets.append(
            ChannelSet(
                name,
                len(ids),
                len(ids),
                {place: owners(axes[place]) for place in ordered},
                makers,
                gates,
                {pad: found for pad, entries in pads.items() if (found := owners(entries)).ge(0).any()},
                is_fixed,
                frozenset(channels.transposed & {path for path, _ in ordered}),
                frozenset(channels.producers & {path for path, _ in ordered}),
            )
        )
    return tuple(sets)


def _leaders(model: nn.Module, channels: Channels):
    """label -> one number for all channels that leave together with it."""
    modules = dict(model.named_modules())
    for path, both in channels.pads.items():
        # the amounts are numbers in some module; only where it holds them under these names can they be changed
        amounts = [getattr(modules.get(path), side, None) for side in ("before", "after")]
        if amounts != [len(labels) for labels in both]:
            channels.counted.update(torch.cat(both).tolist())
    parent: dict[int, int] = {}

    def find(x: int) -> int:
        while parent.get(x, x) != x:
            x = parent[x]
        return x

    for left, right in channels.ties:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = find(channels.find(a)), find(channels.find(b))
            parent[max(a, b)] = min(a, b)
    return lambda label: find(channels.find(label))
