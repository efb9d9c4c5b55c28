"""OBS-style 1xN blocks: those go that a layer's answer needs least, and the weights that stay make up for them.

Paper: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, arXiv 2208.11580; Hassibi and Stork, "Optimal
    Brain Surgeon", NeurIPS 1992; for the weights of outputs, Martens and Grosse, ICML 2015, arXiv 1503.05671 (K-FAC)
Code:  github.com/IST-DASLab/OBC (read about, not read)
Differs: their blocks lie along a filter's inputs; here N filters lose the same inputs, so one inverse serves them, and
    some channels go at a time (`second_order/elimination.py`). Errors of outputs are weighted with the Fisher
    information of each, which makes them comparable over layers. Weights that stay are not those of the elimination: in
    a second pass every layer is fitted to what the pruned layers before it really answer, means and half of the lost
    deviation of each channel restored; its damping is the one that is best on images left out. Channels are rearranged
    by what their filters need (`second_order/grouping.py`), not by L1. No labels are read: they are drawn from the
    network's own answers.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import hooked
from kerf.compress.pruning import removal, scopes
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.removal import Images, Removal
from kerf.compress.pruning.settings import Settings
from kerf.compress.second_order.compensation import Height, compensate, costs
from kerf.compress.second_order.grouping import grouped, saliencies
from kerf.compress.second_order.layer import Layer
from kerf.compress.second_order.refit import Fit
from kerf.compress.second_order.traced import Traced, batched
from kerf.compress.training.sample import Sample, first
from kerf.compress.units.weights import OneByN, Weight, WeightUnits
from kerf.errors import BadInput

FISHER = 256  # images that the Fisher information of outputs is taken from


class Calibrated:
    """What is known from calibration images: ``prices``, a layer's weight -> (R, I) of its blocks in the loss."""

    def __init__(self, images: int, damping: float, seed: int):
        if images < 1 or not damping > 0:
            raise BadInput(f"images {images}, damping {damping:g}: expected at least 1, and above 0")
        self.images, self.damping, self.seed = images, damping, seed
        self.moved: dict[str, Tensor] = {}  # Fisher information of outputs, if `orders` has just moved the channels

    def read(self, sample: Sample) -> None:
        images = torch.cat([x for x, _ in first(sample, self.images)])
        if not bool(images.isfinite().all()):
            raise BadInput("calibration images hold NaN or infinity; expected finite numbers")
        self.batches, self.seen = batched(images), len(images)

    def look(self, model: nn.Module, graph: DependencyGraph, blocks: Height, sample: Sample) -> None:
        self.read(sample)
        matters, self.moved = self.moved, {}
        if blocks.keys() != matters.keys():
            matters = fisher_of_outputs(model, list(blocks), self.batches, self.seed)

        def importance(layer: Layer, _: Fit) -> Tensor:
            return matters[layer.name]

        self.prices = costs(self.program(model, graph), self.batches, blocks, self.damping, importance)

    def program(self, model: nn.Module, graph: DependencyGraph) -> Traced:
        return Traced(model, graph, self.batches[0])


class Surgeon(Calibrated):
    """A criterion, the price of each unit in the loss, and a removal, which compensates; both see the same images.

    And orders of channels, in which filters that need the same inputs are neighbours.
    """

    def orders(
        self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], sparsity: float, sample: Sample
    ) -> dict[str, Tensor]:
        """Of groups of channels, for blocks of the largest height that there is."""
        self.read(sample)
        matters = fisher_of_outputs(model, [u.path for u in units], self.batches, self.seed)
        taps = {u.path: height(u)[1] for u in units}
        program = self.program(model, graph)
        alone = saliencies(program, self.batches, taps, self.damping, lambda layer, _: matters[layer.name])
        n = max(height(u)[0] for u in units)
        found = grouped(graph.groups, alone, surgery.l1_orders(model, graph), n, sparsity, self.seed)
        index = surgery.moves(model, graph, found)
        self.moved = {path: m[index[path, 0]] if (path, 0) in index else m for path, m in matters.items()}
        return found

    def observe(self, model: nn.Module, graph: DependencyGraph, units: Sequence[WeightUnits], sample: Sample) -> None:
        self.look(model, graph, {u.path: height(u) for u in units}, sample)

    def score(self, unit: WeightUnits) -> Tensor:
        if unit.path not in self.prices:
            raise BadInput(f"{unit.path}: a layer that is applied more than once is not fitted; use --method one_by_n")
        return self.prices[unit.path].flatten() / unit.sizes  # a short last block is not cheap for being short

    def remove(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        units: Sequence[WeightUnits],
        keep: Sequence[Tensor],
        images: Images,
    ) -> Removal:
        program = self.program(model, graph)
        removed = removal.zero(model, graph, units, keep, images)
        program.changed.update(removed.masks)
        supports = {path: mask.flatten(1) for path, mask in removed.masks.items()}
        made = compensate(program, self.batches, self.seen, lambda layer, _: supports.get(layer.name), self.damping)
        worst = max(made.lost, key=lambda name: made.lost[name], default="")
        error = f"; relative error of layers at most {made.lost[worst]:.3f} ({worst})" if worst else ""
        note = f"{self.seen} calibration images{error}"
        return Removal(graph, removed.masks, note="; ".join(filter(None, [note, made.note])))


def height(unit: WeightUnits) -> tuple[int, int]:
    """(N, taps) of its blocks: kernels in each, and weights of a kernel that go together."""
    taps, size = unit.shape[2:].numel(), int(unit.sizes[0])
    return (size // taps, taps) if size >= taps else (1, 1)  # a single weight


def fisher_of_outputs(
    model: nn.Module, paths: Sequence[str], batches: Sequence[Tensor], seed: int
) -> dict[str, Tensor]:
    """Weight path -> (O,) mean over images of Σ over positions of (∂L/∂y_o)², labels drawn from the network's answers.

    ½ of it times E(y_o − ŷ_o)² is what the loss is expected to rise by. Of the first FISHER images.
    """
    generator, sums, count = torch.Generator().manual_seed(seed), dict[str, Tensor](), 0
    outputs: dict[str, Tensor] = {}

    def keep(path: str, _: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        outputs[path] = y

    layers = [(path, model.get_submodule(path.rpartition(".")[0])) for path in paths]
    with torch.enable_grad(), hooked(m.register_forward_hook(partial(keep, p)) for p, m in layers):
        for x in batches:
            if count >= FISHER:
                break
            answers = model(x)
            if not isinstance(answers, Tensor) or answers.ndim != 2:
                raise BadInput(f"{type(model).__name__} answers no (B, classes) logits; method obs is for classifiers")
            if not bool(answers.isfinite().all()):
                raise BadInput(f"{type(model).__name__} answers NaN or infinity; are its weights finite?")
            drawn = torch.multinomial(answers.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
            loss = F.cross_entropy(answers, drawn.to(answers.device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(outputs.values()))
            for (path, y), gradient in zip(outputs.items(), gradients):
                channels = 1 if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.Conv2d) else y.ndim - 1
                squares = gradient.transpose(0, channels).flatten(1).double().square().sum(1)
                sums[path] = sums.get(path, torch.zeros_like(squares)) + squares
            count += len(x)
    return {path: total / count for path, total in sums.items()}


def obs(
    settings: Settings,
    *,
    granularity: str = "block",
    images: int = 1024,
    damping: float = 0.01,
    row_multiple: int = 0,
) -> Recipe:
    """Removes, in every layer, the share p of its blocks that cost its answer least, and fits what stays; no training.

    granularity: block or weight; images: training images that it is calibrated on, without their labels; damping: of
    the mean of the diagonal of what is inverted; row_multiple: if not 0, all block rows of a layer keep equally many
    blocks, a multiple of it.
    """
    if row_multiple < 0 or (row_multiple and granularity != "block"):
        raise BadInput(f"row_multiple {row_multiple}, granularity {granularity}: expected 0 or more, and of blocks")
    kinds: dict[str, OneByN | Weight] = {"block": OneByN(settings.n, settings.full), "weight": Weight(settings.full)}
    if granularity not in kinds:
        raise BadInput(f"granularity {granularity!r}: expected block or weight")
    surgeon = Surgeon(images, damping, settings.seed)
    scope = partial(scopes.in_rows, multiple=row_multiple) if row_multiple else scopes.local
    return Recipe(
        kinds[granularity], surgeon.score, scope, rearrange=settings.rearrange, remove=surgeon.remove,
        observe=surgeon.observe, orders=surgeon.orders,
    )  # fmt: skip
