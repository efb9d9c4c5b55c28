"""Refit: what the weights that stay become, given which stay, so that a layer's answers are nearest to its target.

Source: least squares in closed form, as in He et al., ICCV 2017, arXiv 1707.06168, with the target of the dense network
and the inputs of the pruned one; means and deviations by channel as in Nagel et al., ICCV 2019, arXiv 1906.04721.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RESTORED = 0.5  # power: of the deviation that least squares takes from an answer, the share that it gets back (in logs)
MOST = 4.0  # times a filter can grow by that
SCARCE = 32.0  # samples for each input of a layer, with which damping is twice what was asked for


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
        gram, right = gram[0], right[0]
        found = torch.zeros_like(right)
        supports, owner = keep.unique(dim=0, return_inverse=True)
        for i, support in enumerate(supports):
            s, rows = support.nonzero().flatten(), (owner == i).nonzero().flatten()
            if len(s):
                factor = torch.linalg.cholesky(gram[s][:, s])
                found[rows[:, None], s] = torch.cholesky_solve(right[rows][:, s].T, factor).T
        return found

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
