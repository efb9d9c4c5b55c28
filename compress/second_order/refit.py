"""Refit: what the weights that stay become, given which stay, so that a layer's answers are nearest to its target.

Source: least squares in closed form, as in He et al., ICCV 2017, arXiv 1707.06168, with the target of the dense network
and the inputs of the pruned one; means and deviations by channel as in Nagel et al., ICCV 2019, arXiv 1906.04721.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

RESTORED = 0.5  # power: of the deviation that least squares takes from an answer, the share that it gets back (in logs)
MOST = 4.0  # times a filter can grow by that
SCARCE = 32.0  # samples for each input of a layer, with which damping is twice what was asked for
STRONGER = (1.0, 10.0, 100.0)  # times what was asked for: the damping that is best where it was not fitted is taken
TRIED = 8  # supports of a layer that this is tried on


@dataclass(frozen=True)
class Fit:
    """Statistics of a layer of g groups: x, what it reads in the pruned network, and t, what it should answer. f64.

    A group has o = O / g filters of d weights. Moments are central: constants are the bias's.
    """

    gram: Tensor  # Cov[x, x] (g, d, d)
    cross: Tensor  # Cov[t, x] (g, o, d)
    mean: Tensor  # E[x] (g, d)
    target: Tensor  # E[t] (g, o)
    variance: Tensor  # Var[t] (g, o)
    samples: int
    folds: tuple["Moments", ...] = ()  # of parts of the images, which together are all

    def damped(self, damping: float) -> tuple[Tensor, Tensor]:
        """(G + λ I, λ (g, 1, 1)), λ = damping · the mean of G's diagonal; more where samples are few for the width."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        more = 1 + SCARCE * self.gram.shape[1] / self.samples
        ridge = damping * more * diagonal.mean(1).clamp(min=1e-12)[:, None, None]
        return self.gram + ridge * torch.eye(self.gram.shape[1]).to(self.gram), ridge

    def solve(self, weight: Tensor, damping: float, keep: Tensor | None = None) -> Tensor:
        """(O, d) argmin E‖t − W' x‖² + λ‖W' − W‖², W = ``weight``, where W' is zero outside ``keep``, bool (O, d).

        Per filter, W'_S = (T + λ W)_S (G_SS + λ I)⁻¹; filters that keep the same are solved together.
        """
        gram, ridge = self.damped(damping)
        right = self.cross + ridge * weight.double().view_as(self.cross)
        if keep is None:
            return torch.cholesky_solve(right.mT, torch.linalg.cholesky(gram)).mT.flatten(0, 1)
        return torch.cat([_supported(*given) for given in zip(gram, right, keep.view(right.shape))])

    def chosen(self, weight: Tensor, damping: float, keep: Tensor | None = None) -> float:
        """Of ``damping`` and larger ones that with which parts of the images are answered best that were not fitted.

        Positions of an image are alike, so their number does not say how much there is to be learnt of a layer.
        """
        if len(self.folds) < 2:
            return damping
        some = None if keep is None or len(self.gram) > 1 else _of_some(keep)
        whole = sum(self.folds[1:], start=self.folds[0])
        errors = torch.zeros(len(STRONGER), dtype=torch.float64)
        for fold in self.folds:
            seen, unseen = (whole - fold).fit(), fold.fit()
            if some is not None:
                seen, unseen = seen.only(some), unseen.only(some)
            for i, factor in enumerate(STRONGER):
                own, kept = (weight, keep) if some is None or keep is None else (weight[some], keep[some])
                found = seen.solve(own, damping * factor, kept)
                missed = unseen.error(found) + (unseen.constant(found) - seen.constant(found)).square()
                errors[i] += float(missed.sum()) * fold.samples
        return damping * STRONGER[int(errors.argmin())]

    def only(self, filters: Tensor) -> "Fit":
        """Of these filters, of a layer of one group."""
        part = {name: getattr(self, name)[:, filters] for name in ("cross", "target", "variance")}
        return replace(self, **part, folds=())

    def restored(self, weight: Tensor) -> Tensor:
        """(O, d) filters scaled such that deviations of answers come nearer to the target's, which batch norms expect.

        Least squares shrinks what it cannot explain, layer upon layer: W'_o ← W'_o (σ_t / σ_W'x)^RESTORED.
        """
        now = self.spread(weight)
        grown = (self.variance.flatten().sqrt() / now.clamp(min=1e-12)).clamp(max=MOST) ** RESTORED
        return weight * torch.where(now > 1e-9, grown, torch.ones_like(now))[:, None]

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.double().view_as(self.cross)

    def error(self, weight: Tensor) -> Tensor:
        """(O,) Var[t − W x]."""
        w = self._grouped(weight)
        return (self.variance - 2 * (w * self.cross).sum(2) + ((w @ self.gram) * w).sum(2)).flatten()

    def spread(self, weight: Tensor) -> Tensor:
        """(O,) standard deviation of W x."""
        w = self._grouped(weight)
        return ((w @ self.gram) * w).sum(2).clamp(min=0).sqrt().flatten()

    def constant(self, weight: Tensor) -> Tensor:
        """(O,) E[t − W x], the bias with which means are right."""
        return (self.target - (self._grouped(weight) @ self.mean[:, :, None])[..., 0]).flatten()


@dataclass(frozen=True)
class Moments:
    """Sums over positions, of which a Fit is made: Σ x xᵀ, Σ t xᵀ, Σ x, Σ t, Σ t², f64, and how many positions."""

    inputs: Tensor
    cross: Tensor
    mean: Tensor
    target: Tensor
    square: Tensor
    samples: int

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def fit(self, folds: tuple["Moments", ...] = ()) -> Fit:
        gram, cross, mean, target, square = (getattr(self, f.name) / self.samples for f in fields(self)[:-1])
        return Fit(
            gram - mean[:, :, None] * mean[:, None, :],
            cross - target[:, :, None] * mean[:, None, :],
            mean,
            target,
            (square - target.square()).clamp(min=0),
            self.samples,
            folds,
        )


def _supported(gram: Tensor, right: Tensor, keep: Tensor) -> Tensor:
    """(o, d) W with (W G)_S = R_S for each filter's support S: gram (d, d), right (o, d), keep bool (o, d)."""
    found = torch.zeros_like(right)
    supports, owner = keep.unique(dim=0, return_inverse=True)
    for i, support in enumerate(supports):
        s, rows = support.nonzero().flatten(), (owner == i).nonzero().flatten()
        if len(s):
            factor = torch.linalg.cholesky(gram[s][:, s])
            found[rows[:, None], s] = torch.cholesky_solve(right[rows][:, s].T, factor).T
    return found


def _of_some(keep: Tensor) -> Tensor:
    """Indices of the filters of TRIED supports, evenly spread, of ``keep``, bool (O, d)."""
    supports, owner = keep.unique(dim=0, return_inverse=True)
    chosen = torch.linspace(0, len(supports) - 1, min(TRIED, len(supports)), device=keep.device).round().long()
    return torch.isin(owner, chosen).nonzero().flatten()
