"""Grafts: small learned operators on channels, at the point where they leave the layers that make them.

A set's channels come out of a convolution's batch norm, or of the convolution where none follows; if several layers
add up to them, out of each. There one operator, the same on every branch, acts on them: f(Σ x) = Σ f(x) when it is
linear. Parameters live in the model, as `<name>.0`, `<name>.1` …, one per set; hooks apply them. A model with grafts
is not to be copied: the hooks of the copy would use the original's parameters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kerf.compress.network import surgery
from kerf.compress.network.graph import ChannelSet, DependencyGraph
from kerf.errors import BadInput

Act = Callable[[Tensor, Tensor], Tensor]  # (B, width, …) channels, parameter -> the same shape


class Grafts:
    def __init__(self, name: str, act: Act):
        self.name, self.act, self.handles = name, act, list[RemovableHandle]()

    def attach(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        sets: Sequence[ChannelSet],
        initial: Callable[[int], Tensor],
        depthwise: bool = False,
    ) -> nn.ParameterList:
        """One parameter, `initial(width)`, per set. `depthwise` and errors as in `outlets`."""
        device = next(model.parameters()).device
        parameters = nn.ParameterList(initial(s.width).to(device) for s in sets)
        for channels, parameter in zip(sets, parameters):
            for path, entries in outlets(model, graph, channels, depthwise):
                module = model.get_submodule(path)
                self.handles.append(module.register_forward_hook(self._hook(entries.to(device), parameter)))
        model.add_module(self.name, parameters)
        return parameters

    def _hook(self, entries: Tensor, parameter: nn.Parameter) -> Callable[..., Tensor]:
        whole = torch.equal(entries, torch.arange(len(entries), device=entries.device))

        def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
            if whole and output.shape[1] == len(entries):
                return self.act(output, parameter)
            changed = self.act(output.index_select(1, entries), parameter)
            return output.index_copy(1, entries, changed.to(output.dtype))

        return hook

    def detach(self, model: nn.Module) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        delattr(model, self.name)


def outlets(
    model: nn.Module, graph: DependencyGraph, channels: ChannelSet, depthwise: bool = False
) -> list[tuple[str, Tensor]]:
    """(module path, (width,) entry of each channel on axis 1 of its output), for every layer that makes the channels.

    With ``depthwise`` also for the depthwise layers that they pass: a channel that is zero before one is a constant
    behind it. Raises ValueError where a channel owns more than one entry, as behind a grouped convolution.
    """
    layers = list(channels.makers)
    if depthwise:
        layers += surgery.depthwise(model, channels)
    found = []
    for maker in layers:
        if channels.copies((maker, 0)) != 1:
            raise BadInput(f"{channels.name}: {channels.copies((maker, 0))} filters leave together; expected one")
        module = graph.norms.get(maker) or maker.rpartition(".")[0]
        found.append((module, channels.positions((maker, 0))[:, 0]))
    return found


def made(model: nn.Module, graph: DependencyGraph, channels: ChannelSet) -> list[tuple[str, Tensor]]:
    """(weight that makes the channels, (width,) their entries behind its batch norm). Raises as `outlets`."""
    return [(m, entries) for m, (_, entries) in zip(channels.makers, outlets(model, graph, channels), strict=True)]


def affine(model: nn.Module, kind: type[nn.BatchNorm2d]) -> list[nn.BatchNorm2d]:
    """The batch norms of exactly this kind that have γ and β: methods give them another class for a while."""
    return [m for m in model.modules() if type(m) is kind and m.affine]
