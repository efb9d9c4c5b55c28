"""BWCP: channels are whitened behind their batch norms, and masked by the chance that they are active at all.

Paper: Shao et al., "BWCP: Probabilistic Learning-to-Prune Channels for ConvNets via Batch Whitening", 2021,
    arXiv 2105.06423
Code:  none known
Differs: as many channels go as were asked for, those with the least chance of all layers, and are fine-tuned; --set
    likely=1 does what the paper does: all epochs under pressure, then those with a chance of at most 1/2 go, however
    many those are, without fine-tuning. Whitened are the batch norms of the layers whose channels can go, and where
    a matrix can be folded into the layer (not DenseNet's); the paper whitens all. Filled in: five iterations and a
    rate of 0.1 for the running matrix, as IterNorm has them (the running matrix begins as a plain mean); masks are
    drawn as σ((ln P − ln (1 − P) + G1 − G2) / τ); the "sigmoid-like" squashing of P, whose form is not given, is left
    out. The likeliest channel of a layer is never masked. Correlations are those of the whole batch, on several
    processes too. With --residual every branch of a sum draws its own mask, and the sum's chance is the product of
    theirs. Attaching changes the function, as in the paper, which trains from scratch; both λ are its for ImageNet.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.methods.own_norms import momentum_of
from kerf.compress.network import folding, surgery
from kerf.compress.network.grafts import made
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import removal, schedules
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.removal import Images, Removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.global_batch import summed
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.training.sample import Sample
from kerf.compress.units.channels import ChannelUnits, Foldable
from kerf.errors import BadInput

RUNNING = 0.1  # share of a batch's matrix in the running one
CERTAIN = 100.0  # z whose mask is 0 or 1 whatever the noise
HALF = math.log(1 / 2)
START = 1 / 6  # share of the phase before the penalty sets in: 20 of 120 epochs


def covariance(gamma: Tensor, rho: Tensor) -> Tensor:
    """(G, s), correlations (G, s, s) -> (γ γᵀ ∘ ρ) / ‖γ‖², whose trace is 1."""
    return gamma[:, :, None] * gamma[:, None] * rho / gamma.square().sum(1).clamp(min=1e-12)[:, None, None]


def inverse_root(sigma: Tensor, iterations: int) -> Tensor:
    """(…, s, s) -> about Σ^(-1/2), by Newton: Σ_k = ½ (3 Σ_{k−1} − Σ_{k−1}³ Σ), from the identity."""
    root = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device).expand(sigma.shape)
    for _ in range(iterations):
        root = 1.5 * root - 0.5 * root @ root @ root @ sigma
    return root


def margin(shift: Tensor, scale: Tensor, delta: float) -> Tensor:
    """z with P(x > δ) = Φ(z) for x from N(shift, scale²): (shift − δ) / |scale|."""
    return (shift - delta) / scale.abs().clamp(min=1e-6)


def drawn(z: Tensor, tau: float, noise: Tensor | float) -> Tensor:
    """Soft mask σ((ln P − ln (1 − P) + noise) / τ) with P = Φ(z)."""
    z = z.clamp(-CERTAIN, CERTAIN)  # torch's derivative of ln Φ is nan beyond 50,000, which a scale near 0 reaches
    return ((torch.special.log_ndtr(z) - torch.special.log_ndtr(-z) + noise) / tau).sigmoid()


class WhitenedBatchNorm2d(nn.BatchNorm2d):
    """m ∘ W (γ x̂ + β): m is drawn in training, and 0 or 1 in evaluation, where W is the running matrix."""

    whitening: Tensor
    whitened: Tensor

    def begin(self, free: Tensor, group: int, iterations: int, delta: float, tau: float) -> None:
        """`free`, bool (C,): channels that can be masked."""
        self.iterations, self.delta, self.tau, self.free = iterations, delta, tau, free
        self.size = min(group, len(free))
        rho = torch.eye(self.size, dtype=self.weight.dtype, device=free.device).expand(
            -(-len(free) // self.size), -1, -1
        )
        self.register_buffer("whitening", inverse_root(covariance(self._grouped(self.weight), rho), iterations))
        self.register_buffer("whitened", torch.zeros((), dtype=torch.long, device=free.device))  # batches so far

    def end(self) -> None:
        del self.whitening, self.whitened, self.free, self.iterations, self.delta, self.tau, self.size
        self.__class__ = nn.BatchNorm2d  # type: ignore[assignment] # the plain norm that it was

    def _grouped(self, c: Tensor) -> Tensor:
        """(C,) -> (G, s)"""
        return F.pad(c, (0, -len(c) % self.size)).view(-1, self.size)

    def margins(self, whitening: Tensor) -> Tensor:
        """(C,) z of W γ and W β."""
        both = torch.stack([self._grouped(self.bias), self._grouped(self.weight)], 2)
        shift, scale = (whitening @ both).flatten(0, 1)[: len(self.weight)].unbind(1)
        return margin(shift, scale, self.delta)

    def hard(self) -> Tensor:
        """bool (C,): P > 1/2."""
        z = self.margins(self.whitening)
        kept = (z > 0) | ~self.free
        kept[z.argmax()] = True
        return kept

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._whiten(x.to(self.weight.dtype)).to(x.dtype)

    def _whiten(self, x: Tensor) -> Tensor:
        momentum = momentum_of(self)
        x = F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, momentum, self.eps)
        channels, whole = x.shape[1], (1, -1, 1, 1)
        whitening = self.whitening
        if self.training:
            whitening = inverse_root(covariance(self._grouped(self.weight), self._correlations(x)), self.iterations)
            with torch.no_grad():
                self.whitened.add_(1)
                self.whitening.lerp_(whitening, max(RUNNING, 1 / int(self.whitened)))
            gumbel = -torch.rand(2, channels, device=x.device).clamp(min=1e-30).log()
            mask = drawn(self.margins(whitening), self.tau, -gumbel[0].log() + gumbel[1].log())
            mask = torch.where(self.free, mask, 1.0)
        else:
            mask = self.hard().to(x.dtype)
        z = x * self.weight.view(whole) + self.bias.view(whole)
        z = F.pad(z, (0, 0, 0, 0, 0, -channels % self.size))
        z = F.conv2d(z, whitening.reshape(-1, self.size, 1, 1), groups=len(whitening))[:, :channels]
        return z * mask.view(whole)

    def _correlations(self, x: Tensor) -> Tensor:
        """(G, s, s) of x̂, over all images and pixels of the batch."""
        x = x.transpose(0, 1).flatten(1)
        count = distributed.total(torch.tensor(x.shape[1], dtype=x.dtype, device=x.device))
        x = F.pad(x, (0, 0, 0, -len(x) % self.size)).view(-1, self.size, x.shape[1])
        return summed(x @ x.transpose(1, 2)) / count


def whiten(
    norm: nn.BatchNorm2d, free: Tensor, group: int, iterations: int, delta: float, tau: float
) -> WhitenedBatchNorm2d:
    """The same tensors under the same names, of another class."""
    norm.__class__ = WhitenedBatchNorm2d
    assert isinstance(norm, WhitenedBatchNorm2d)
    norm.begin(free, group, iterations, delta, tau)
    return norm


class Whitening(Pressure):
    """task + Σ λ1 |γ| + λ2 β, over the whitened batch norms."""

    def __init__(self, weights: tuple[float, float], group: int, iterations: int, delta: float, tau: float):
        self.weights, self.options, self.delta = weights, (group, iterations, delta, tau), delta

    @torch.no_grad()
    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.graph, self.first = units, graph, round(START * plan.steps)
        self.norms: dict[str, WhitenedBatchNorm2d] = {}  # by the weight that makes the channels
        plain: dict[str, nn.BatchNorm2d] = {}
        free: dict[str, Tensor] = {}
        for unit in units:
            for maker, entries in made(model, graph, unit.channels):
                norm = model.get_submodule(graph.norms[maker])
                if not isinstance(norm, nn.BatchNorm2d):
                    raise BadInput(f"{graph.norms[maker]} is a {type(norm).__name__}: bwcp whitens BatchNorm2d alone")
                plain[maker] = norm
                free.setdefault(maker, torch.zeros_like(norm.weight, dtype=torch.bool))[entries] = True
        for maker, norm in plain.items():
            self.norms[maker] = whiten(norm, free[maker], *self.options)
        self.attached = True

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        loss, logits = task(model, x, y)
        if step >= self.first:
            scale, shift = self.weights
            loss = loss + sum(scale * n.weight.abs().sum() + shift * n.bias.sum() for n in self.norms.values())
        return loss, logits

    @torch.no_grad()
    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], sample: Sample) -> None:
        """ln P of every channel, without whitening where there is none yet."""
        self.scores = {}
        for unit in units:
            found = []
            for maker, entries in made(model, graph, unit.channels):
                norm = model.get_submodule(graph.norms[maker])
                if isinstance(norm, WhitenedBatchNorm2d):
                    z = norm.margins(norm.whitening)
                else:
                    shift, scale = (surgery.tensor_at(norm, name) for name in ("bias", "weight"))
                    z = margin(shift, scale, self.delta)
                found.append(torch.special.log_ndtr(z.double())[entries.to(z.device)])
            self.scores[unit.path] = torch.stack(found).sum(0)

    def score(self, unit: ChannelUnits) -> Tensor:
        return self.scores[unit.path]

    def likely(self, scores: Sequence[Tensor], units: Sequence[ChannelUnits], ratio: float) -> list[Tensor]:
        """Those with P > 1/2, and the likeliest of each layer, whatever was asked for."""
        keep = [score > HALF for score in scores]
        for kept, score in zip(keep, scores):
            kept[score.argmax()] = True
        return keep

    @torch.no_grad()
    def fold(self, model: nn.Module, kept: dict[str, Tensor] | None = None) -> None:
        """diag(m) W into the layers; `kept`, bool (C,) by maker, in place of the channels that are likely active."""
        for maker, norm in self.norms.items():
            mask = norm.hard() if kept is None else kept[maker]
            matrix = torch.block_diag(*norm.whitening.double().unbind())[: len(mask), : len(mask)] * mask[:, None]
            norm.end()
            folding.fold_matrix(model, self.graph, maker, matrix)
        self.attached = False

    def release(self, model: nn.Module) -> None:
        """Nothing: it is `remove` that folds, with the choice."""

    def masks(
        self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], keep: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """bool (C,) by maker, False where channels go."""
        masks = {maker: torch.ones_like(norm.free) for maker, norm in self.norms.items()}
        for unit, kept in zip(units, keep):
            for maker, entries in made(model, graph, unit.channels):
                masks[maker][entries] = kept.to(masks[maker].device)
        return masks

    @torch.no_grad()
    def remove(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        units: Sequence[ChannelUnits],
        keep: Sequence[Tensor],
        images: Images,
    ) -> Removal:
        if self.attached:
            self.fold(model, self.masks(model, graph, units, keep))
        return removal.cut_folded(model, graph, units, keep, images)

    @torch.no_grad()
    def report(self, model: nn.Module) -> str:
        likely = [(n.margins(n.whitening) > 0)[n.free] for n in self.norms.values()]
        return f"chance above 1/2 for {sum(int(m.sum()) for m in likely)} of {sum(len(m) for m in likely)} channels"


def bwcp(
    settings: Settings,
    *,
    gamma_weight: float = 7e-5,
    beta_weight: float = 3.5e-5,
    delta: float = 0.05,
    tau: float = 0.5,
    group: int = 16,
    iterations: int = 5,
    likely: int = 0,
) -> Recipe:
    """Cuts, over all layers, channels with the least chance to be active, which whitening and a penalty tell apart.

    gamma_weight, beta_weight: λ of |γ| and of β (4e-5 and 8e-5 for CIFAR-10); delta: what counts as active; tau:
    temperature of masks; group: channels whitened together; iterations: of Newton's; likely: 1 cuts exactly the
    channels with a chance of at most 1/2, as the paper, and fine-tunes nothing.
    """
    if likely not in (0, 1):
        raise BadInput(f"likely is {likely}: expected 1, for what the chances say, or 0, for what is asked for")
    if group < 1 or iterations < 0 or not tau > 0:
        raise BadInput(f"group {group}, iterations {iterations}, tau {tau}: expected >= 1, >= 0 and > 0")
    whitening = Whitening((gamma_weight, beta_weight), group, iterations, delta, tau)
    return Recipe(
        settings.channels(Foldable, scaled=True),
        whitening.score,
        whitening.likely if likely else settings.pooled,
        schedules.within_training if likely else schedules.press_then_prune,
        pressure=whitening,
        remove=whitening.remove,
        observe=whitening.observe,
        reach=settings.pooled,
    )
