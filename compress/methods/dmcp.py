"""DMCP: widths as stopping times of Markov chains, searched by gradient, then trained from scratch.

Paper: Guo et al., "DMCP: Differentiable Markov Channel Pruning for Neural Networks", CVPR 2020, arXiv 2005.03354
Code:  github.com/Zx55/dmcp
Differs: narrow sub-networks are the full one with channels zeroed behind their batch norms, and again behind depthwise
    ones, which computes the same (but where a concatenation is normalised later). Their widths are on the search's
    grid, not multiples of 8. α's rate is the weights' schedule times a constant. The searched network is the one in
    which the channels with the least chance to survive are gone, as many as the MACs target asks; the authors draw
    widths until they fit within 1 %. MACs are counted in thousandths of the target, so that the loss acts alike on
    small and large networks. --flops_target is a share of the network that is searched, the wide one where it is wider
    than the plain one. Defects of the released code are not copied.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.network.grafts import Grafts
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import removal, schedules, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.compress.training import distributed
from kerf.compress.training.pressure import ParameterGroup, Plan, Pressure, Task
from kerf.compress.units.channels import ChannelUnits
from kerf.errors import BadInput

LOWEST, STEP = 0.1, 0.1  # of widths, as shares of a layer of the plain network
THOUSAND = 1000.0  # the target, in the units of the MACs loss


class Chain:
    """One layer's grid of widths: `least` + `each` · k for k = 0 … `groups`, and a chance to go on from each.

    ``highest``: the width of the layer, in those of the plain network.
    """

    def __init__(self, width: int, highest: float = 1.0):
        self.width = width
        self.each = int(STEP * width / highest + 1e-9)
        self.groups = int((highest - LOWEST) / STEP + 1e-4) if self.each else 0
        self.least = width - self.each * self.groups

    def survival(self, alpha: Tensor) -> Tensor:
        """(groups,) m_k = Π_{j ≤ k} σ(α_j): the chance that group k is there."""
        return alpha.sigmoid().cumprod(0)

    def expected(self, alpha: Tensor) -> Tensor:
        return self.least + self.each * self.survival(alpha).sum()

    def gate(self, alpha: Tensor) -> Tensor:
        """(width,) factor of every channel."""
        return torch.cat([alpha.new_ones(self.least), self.survival(alpha).repeat_interleave(self.each)])

    def sample(self, alpha: Tensor) -> int:
        """Starts at `least` and goes on while u ≤ p_k, u from U(0, 1)."""
        on = torch.rand(self.groups) <= alpha.detach().cpu().sigmoid()
        return self.least + self.each * int(on.long().cumprod(0).sum())

    def uniform(self) -> int:
        return self.least + self.each * int(torch.randint(self.groups + 1, ()))


def macs_loss(macs: Tensor, target: float, eta: float) -> Tensor:
    """log-L1 with a free band of 5 % below the target; steep when more than 200 off."""
    r = 0.1 if abs(float(macs.detach()) - target) > 200 else 1.0
    if macs < 0.95 * target:
        return eta * torch.log(r * (target - macs))
    if macs < target:
        return 0 * macs
    return eta * torch.log(r * (macs - 0.95 * target))


class _Frozen(nn.Module):
    """A model that computes with these parameters in place of its own, and owns none."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]):
        super().__init__()
        self.of = model, parameters

    def forward(self, images: Tensor) -> Tensor:
        model, parameters = self.of
        return torch.func.functional_call(model, parameters, (images,))


class MarkovGates(Pressure):
    def __init__(self, arch_lr: float, eta: float, highest: float = 1.0):
        self.arch_lr, self.eta, self.highest = arch_lr, eta, highest
        self.grafts = Grafts("survival", self._act)
        self.mode: str | dict[int, int] = "full"  # or "soft", or id of α -> width

    def attach(self, model: nn.Module, graph: DependencyGraph, units: Sequence[ChannelUnits], plan: Plan) -> None:
        self.units, self.plan = units, plan
        self.chains = [Chain(u.count, self.highest) for u in units]
        sizes = iter(self.chains)
        self.alphas = self.grafts.attach(
            model, graph, [u.channels for u in units], lambda _: torch.zeros(next(sizes).groups), depthwise=True
        )
        self.by_id = {id(alpha): chain for alpha, chain in zip(self.alphas, self.chains)}
        self.attached = True

    def _act(self, x: Tensor, alpha: Tensor) -> Tensor:
        if self.mode == "full":
            return x
        chain = self.by_id[id(alpha)]
        if isinstance(self.mode, dict):
            gate = (torch.arange(chain.width, device=x.device) < self.mode[id(alpha)]).float()
        else:
            gate = chain.gate(alpha)
        return x * gate.to(x.dtype).view(-1, *[1] * (x.ndim - 2))

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        names = [f"{self.grafts.name}.{i}" for i in range(len(self.alphas))]
        return [ParameterGroup(names, scale=self.arch_lr / self.plan.peak, weight_decay=0.0)]

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, task: Task, step: int) -> tuple[Tensor, Tensor]:
        """Sandwich: the full width learns the labels; the least and two random ones learn what the full one says."""
        searching = step >= self.plan.steps // 2
        self.mode = "full"
        loss, logits = task(model, x, y)
        teacher = logits.detach().log_softmax(1)
        for widths in ([c.least for c in self.chains], self._widths(step), self._widths(step)):
            self.mode = {id(alpha): width for alpha, width in zip(self.alphas, widths)}
            _, narrow = task(model, x, y)
            loss = loss + F.kl_div(narrow.log_softmax(1), teacher, reduction="batchmean", log_target=True)
        if searching:
            loss = loss + self._search(model, x, y, task)
        self.mode = "full"
        return loss, logits

    def _widths(self, step: int) -> list[int]:
        # uniform widths with chance q, which falls by 1e-4 with both draws of every tenth step
        searched = step - self.plan.steps // 2
        q = 0.9999 ** (2 * (searched // 10 + 1)) if searched >= 0 else 1.0
        if float(torch.rand(())) < q:
            drawn = [c.uniform() for c in self.chains]
        else:
            drawn = [c.sample(alpha) for c, alpha in zip(self.chains, self.alphas)]
        return drawn if distributed.alone() else distributed.from_first([torch.tensor(drawn)])[0].tolist()

    def _search(self, model: nn.Module, x: Tensor, y: Tensor, task: Task) -> Tensor:
        """Cross-entropy of the gated network and the MACs loss; only α learns from them."""
        self.mode = "soft"
        frozen = {name: p.detach() for name, p in model.named_parameters()}
        loss, _ = task(_Frozen(model, frozen), x, y)
        return loss + macs_loss(self.expected_macs(), THOUSAND, self.eta)

    def expected_macs(self) -> Tensor:
        """In thousandths of the target."""
        expected = {u.path: c.expected(a) for u, c, a in zip(self.units, self.chains, self.alphas)}
        cost = self.units[0].widths
        return cost.macs(expected) * (THOUSAND / ((1 - self.plan.sparsity) * cost.dense))

    def score(self, unit: ChannelUnits) -> Tensor:
        """Chance to survive; of equal ones, the later channel goes first."""
        index = [u.path for u in self.units].index(unit.path)
        gate = self.chains[index].gate(self.alphas[index].detach()).double()
        return gate - torch.arange(len(gate), device=gate.device) * 1e-9

    def fold(self, model: nn.Module) -> None:
        if self.attached:
            self.grafts.detach(model)
        self.attached = False

    def report(self, model: nn.Module) -> str:
        return f"expected MACs {float(self.expected_macs().detach()) / THOUSAND:.3f} of the target"


def dmcp(
    settings: Settings, *, arch_lr: float = 0.5, eta: float = 0.1, search_rate: float = 0.0, width: float = 1.0
) -> Recipe:
    """Half of the epochs search widths, half train the network they give from scratch.

    eta: weight of the MACs loss; search_rate: highest learning rate of the search, 0 for the run's own; width: of the
    network given, in those of the plain one: 1.5 with --arch mobilenet_v2_x1_5, whose widths are then 0.1 to 1.5.
    """
    if not width >= 1:
        raise BadInput(f"width is {width:g}: expected 1, or how many times as wide the network is")
    if not settings.by_macs:
        raise BadInput("dmcp searches for a number of MACs: give --flops_target")
    gates = MarkovGates(arch_lr, eta, width)
    return Recipe(
        settings.channels(residual=True),
        gates.score,
        partial(scopes.greedy_macs, **settings.floors),
        partial(schedules.press_then_prune, rate=search_rate),
        pressure=gates,
        remove=removal.renew(settings.seed),  # only the widths are inherited
    )
