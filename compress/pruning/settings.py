"""What a user may choose about a method."""

from dataclasses import dataclass
from functools import partial

from kerf.compress.pruning import scopes
from kerf.compress.pruning.scopes import Scope
from kerf.compress.units.channels import Channel


@dataclass(frozen=True)
class Settings:
    """What a user may choose about a method; each method takes what it needs."""

    n: int = 16  # consecutive output kernels in a block
    full: bool = False  # prune the classifier too
    rearrange: bool = False
    seed: int = 0
    by_macs: bool = False  # the budget's sparsity is a share of the MACs, not of the channels
    residual: bool | None = None  # prune channels that are sums of several layers too; None: as the method has it
    skip: tuple[str, ...] = ()  # patterns of layers whose channels stay
    min_width: int = 1  # channels that every layer keeps
    round_to: int = 1  # widths are multiples of it

    @property
    def floors(self) -> dict[str, int]:
        return {"least": self.min_width, "multiple": self.round_to}

    def channels(self, kind: type[Channel] = Channel, *, scaled: bool = False, residual: bool = False) -> Channel:
        """Channels as units; `residual` is the method's own wish about sums, where the user has none."""
        return kind(residual if self.residual is None else self.residual, scaled, self.skip)

    @property
    def uniform(self) -> Scope:
        """The same share of every layer, such that channels, or MACs, fall by what is asked for."""
        return partial(scopes.uniform_macs if self.by_macs else scopes.local, **self.floors)

    @property
    def pooled(self) -> Scope:
        """The smallest scores of all layers together, until as many channels, or MACs, are gone."""
        return partial(scopes.greedy_macs if self.by_macs else scopes.overall, **self.floors)
