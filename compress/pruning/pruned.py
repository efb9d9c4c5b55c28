"""A pruned network in a user's own training loop: its numbers, and the handle that keeps it pruned.

`hold` hooks an optimiser: what pruning zeroed is zero again after each of its steps, and so is its momentum. A method
that prunes while training is attached first: its own parameters join the optimiser, its loss and its gradients come
with every step, and `finish` removes what it has chosen.
"""

import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerf.compress.network import cost, surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.network.watching import evaluated
from kerf.compress.pruning.given import in_single
from kerf.compress.pruning.recipe import Recipe, prune
from kerf.compress.training.pressure import Plan, Pressure, Task
from kerf.compress.units.weights import OneByN
from kerf.errors import BadInput, Unsupported

WORTH_SAYING = 0.1  # share of the MACs


@dataclass(frozen=True)
class Work:
    """What is still to be done to a network."""

    recipe: Recipe
    graph: DependencyGraph
    example: Any
    plan: Plan


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x)
    return F.cross_entropy(logits.float(), y), logits


class Pruned:
    """A network that kerf has pruned in place, or, while a method is ``attached``, one that it is pruning.

    ``macs`` and ``parameters`` count what is left, without zeros, per image; ``widths`` says of every set of channels
    that lost some how many there were and are, ``kept`` which; ``zero_blocks`` the share of zero 1×N blocks by layer.
    """

    def __init__(self, model: nn.Module, method: str, work: Work):
        self.model, self.method = model, method
        self.masks: dict[str, Tensor] = {}  # parameter -> bool of its shape, True = keep
        self.kept: dict[str, Tensor] = {}  # set of channels -> indices of those that are left
        self.note = work.graph.note  # on layers that keep all channels, since operators have no rule
        self.widths: dict[str, tuple[int, int]] = {}
        self.zero_blocks: dict[str, float] = {}
        found = cost.count(model, work.example)
        self.macs = self.macs_dense = found.macs
        self.parameters = self.parameters_dense = found.params
        self.step = 0  # of a method that is attached
        self._linear = 0.0  # share of the MACs that linear layers have, where they are left out
        self._work: Work | None = work
        self._asked = False  # for the loss of the step that comes
        self.holders = 0  # optimisers that are held
        self._gone: list[weakref.ref[Tensor]] = []  # parameters that left the network

    @property
    def attached(self) -> bool:
        """Whether a method is still pruning: it is `finish` that removes."""
        return self._work is not None and self._work.recipe.pressure.attached

    def attach(self) -> None:
        """Called by `kerf.prune`."""
        assert self._work is not None
        recipe, graph, example = self._work.recipe, self._work.graph, self._work.example
        recipe.pressure.attach(self.model, graph, recipe.granularity.split(self.model, graph, example), self._work.plan)
        recipe.pressure.begin(self.model)

    def finish(self) -> nn.Module:
        """Removes what the method has chosen, takes it out of the network and returns that, in place.

        Channels that are cut take parameters with them: what is trained after it needs an optimiser of its own.
        """
        if self._work is None:
            return self.model
        work, before = self._work, list(self.model.parameters())
        with evaluated(self.model), in_single(self.model):
            removed = prune(self.model, work.recipe, work.graph, work.example, work.plan.sparsity, work.plan.sample)
            if work.recipe.pressure.attached:
                work.recipe.pressure.fold(self.model)
            self.masks = removed.masks
            self.kept = {name: kept.nonzero().flatten() for name, kept in removed.kept.items()}
            self.widths = {n: (len(kept), int(kept.sum())) for n, kept in removed.kept.items() if not kept.all()}
            left = cost.count(self.model, work.example, self.masks)
        self.macs, self.parameters = left.macs, left.params
        if getattr(work.recipe.granularity, "full", True) is False:
            self._linear = _in_linear(self.model, left) / max(1, left.macs_dense)
        if isinstance(units := work.recipe.granularity, OneByN):
            for path in self.masks:
                share = 1 - cost.block_density(self.model, [path], units.height(path))
                self.zero_blocks[path.removesuffix(".weight")] = share
        now = {id(p) for p in self.model.parameters()}
        self._gone = [weakref.ref(p) for p in before if id(p) not in now]
        self._work = None  # with it go the data and the method
        return self.model

    def loss(self, x: Tensor, y: Tensor, task: Task = cross_entropy) -> tuple[Tensor, Tensor]:
        """(loss, logits) of a batch; while a method is attached, with what that adds.

        ``task`` is the loss without: model, images, labels -> loss, logits.
        """
        if not self.attached:
            return task(self.model, x, y)
        assert self._work is not None
        self._asked = True
        return self._work.recipe.pressure.loss(self.model, x, y, task, self.step)

    def hold(self, optimizer: torch.optim.Optimizer) -> "Held":
        """From now on, until the handle's `remove` or the end of its with block, each step leaves zeros zero.

        Schedulers of the learning rate are to be made after it: a method that is attached may add parameter groups.
        """
        return Held(self, optimizer)

    @torch.no_grad()
    def after_step(self) -> None:
        """Zeroes again what pruning zeroed: once after every step, for loops whose optimisers take no hooks."""
        if self.attached:
            raise BadInput(f"{self.method} is attached: it has to see every step, so hold(optimizer)")
        for path, mask in self.masks.items():
            self.masks[path] = mask.to(self.model.get_parameter(path).device)
        surgery.zero(self.model, self.masks)

    def before(self, optimizer: torch.optim.Optimizer) -> float:
        """Edits the gradients of a step that comes; what the step's learning rate is to be multiplied by."""
        if self._work is None:
            self.check(optimizer)
            return 1.0
        pressure, plan = self._work.recipe.pressure, self._work.plan
        if self.step >= plan.steps:
            raise BadInput(f"the {plan.steps} steps that {self.method} was given are over: call finish()")
        if _overrides(pressure, "loss") and not self._asked:
            raise BadInput(f"{self.method} adds to the loss: train on loss, logits = pruned.loss(x, y)")
        pressure.edit_gradients(self.model, self.step)
        return pressure.rate_factor(self.step)

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """What follows a step of `optimizer`."""
        if self._work is not None:
            self._work.recipe.pressure.after_step(self.model, self.step)
            self.step, self._asked = self.step + 1, False
            return
        self.after_step()
        for path, mask in self.masks.items():
            weight = self.model.get_parameter(path)
            for value in optimizer.state.get(weight, {}).values():  # momentum would bring them back
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.mul_(mask)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises BadInput for an optimiser of parameters that have left the network."""
        gone = {id(p) for ref in self._gone if (p := ref()) is not None}
        if any(id(p) in gone for group in optimizer.param_groups for p in group["params"]):
            raise BadInput("this optimizer was made before channels were cut: make one of the parameters that are left")

    def own_groups(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Parameters that the attached method wants in groups of their own. Raises Unsupported where it cannot."""
        if self._work is None:
            return []
        pressure = self._work.recipe.pressure
        groups, named = pressure.parameter_groups(self.model), dict(self.model.named_parameters())
        edits = _overrides(pressure, "edit_gradients")
        if (groups or edits) and not isinstance(optimizer, torch.optim.SGD):
            raise Unsupported(
                f"{self.method} edits gradients as SGD follows them: hold a torch.optim.SGD, not "
                f"{type(optimizer).__name__}"
            )
        found = []
        for group in groups:
            options = {"momentum": group.momentum, "nesterov": group.nesterov, "weight_decay": group.weight_decay}
            options = {name: value for name, value in options.items() if value is not None}
            found.append({"params": [named[name] for name in group.names], "scale": group.scale, **options})
        return found

    def __repr__(self) -> str:
        of = f"{self.method} of {type(self.model).__name__}"
        if self._work is not None:
            return f"Pruned({of}: attached, step {self.step} of {self._work.plan.steps}; finish() removes)"
        parts = [
            f"MACs {self.macs:,} of {self.macs_dense:,} ({self.macs / max(1, self.macs_dense):.1%})",
            f"parameters {self.parameters:,} of {self.parameters_dense:,}",
        ]
        if self.widths:
            before, after = (sum(column) for column in zip(*self.widths.values()))
            parts.append(f"{after} of {before} channels left in {len(self.widths)} layers")
        elif self.masks:
            parts.append(f"zeros in {len(self.masks)} layers")
        if self.zero_blocks:
            least, most = min(self.zero_blocks.values()), max(self.zero_blocks.values())
            parts.append(f"zero blocks {least:.0%}" + (f" to {most:.0%}" if f"{most:.0%}" != f"{least:.0%}" else ""))
        if self._linear >= WORTH_SAYING:
            parts.append(f"linear layers, {self._linear:.0%} of all MACs, stay dense (full=True prunes them)")
        return f"Pruned({of}: {', '.join(parts)})"


def _in_linear(model: nn.Module, found: cost.Cost) -> int:
    """Dense multiply-accumulates of linear layers."""
    paths = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sum(found.layers[path].macs_dense for path in paths if path in found.layers)


class Held:
    """Hooks of a pruned network on one optimiser, until `remove` or the end of a with block."""

    def __init__(self, pruned: Pruned, optimizer: torch.optim.Optimizer):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise BadInput(
                f"hold() takes a torch.optim.Optimizer, not a {type(optimizer).__name__}: give it the one within, or "
                "call after_step() yourself"
            )
        pruned.check(optimizer)
        if pruned.attached and pruned.holders:
            raise BadInput(f"{pruned.method} is attached and counts steps of one optimizer: it holds one already")
        self.pruned, self.optimizer = pruned, optimizer
        self.rates: list[float] | None = None  # as the loop has them, while a step is taken
        self.moved: list[tuple[dict[str, Any], list[nn.Parameter]]] = []  # group -> what it had before
        self.groups = pruned.own_groups(optimizer)
        self._join()
        pruned.holders += 1
        self.handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def _join(self) -> None:
        own = {id(p) for group in self.groups for p in group["params"]}
        for group in self.optimizer.param_groups if own else ():
            self.moved.append((group, group["params"]))
            group["params"] = [p for p in group["params"] if id(p) not in own]
        for group in self.groups:
            self.optimizer.add_param_group({"lr": self.optimizer.param_groups[0]["lr"], **group})

    def _before(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        factor = self.pruned.before(optimizer)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor * group.get("scale", 1.0)

    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group, rate in zip(optimizer.param_groups, self.rates or (), strict=True):
            group["lr"] = rate
        self.pruned.after(optimizer)

    def remove(self) -> None:
        """Lets the optimiser go; parameters that a method added leave it."""
        self.pruned.holders -= len(self.handles) > 0
        for handle in self.handles:
            handle.remove()
        self.handles = []
        own = {id(p) for group in self.groups for p in group["params"]}
        groups = self.optimizer.param_groups
        groups[:] = [g for g in groups if not own.intersection(map(id, g["params"])) or not own]
        left = {id(p) for p in self.pruned.model.parameters()}
        for group, before in self.moved:
            group["params"] = [p for p in before if id(p) in left]
        self.groups, self.moved = [], []

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _overrides(pressure: Pressure, name: str) -> bool:
    return getattr(type(pressure), name) is not getattr(Pressure, name)
