"""Changes of parameters that move, merge, cut and zero channels, in place; folding.py has those between layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kerf.compress.network.blocks import CONVOLUTIONS
from kerf.compress.network.graph import ChannelSet, DependencyGraph, Group
from kerf.errors import BadInput


@torch.no_grad()
def permute(model: nn.Module, graph: DependencyGraph, orders: Mapping[str, Tensor]) -> None:
    """Put each named group's channels in a new order: position i receives the channel that was at order[i].

    ``orders`` maps group names to (width,) index tensors. Every parameter and buffer that carries the group follows, so
    the network computes the same function up to the order of summation. Raises ValueError, before anything is
    changed, for an unknown or fixed group and for what is not a permutation.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for (path, axis), index in moves(model, graph, orders).items():
        tensor = tensors[path]
        tensor.copy_(tensor.index_select(axis, index.to(tensor.device)))


def moves(model: nn.Module, graph: DependencyGraph, orders: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """(parameter or buffer, axis) -> the old place of what `permute` puts at each. Raises ValueError as it does."""
    groups = {group.name: group for group in graph.groups}
    indices: dict[tuple[str, int], Tensor] = {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, order in orders.items():
        _check(name, groups.get(name), order)
        for m in groups[name].members:
            index = indices.setdefault((m.path, m.axis), torch.arange(tensors[m.path].shape[m.axis]))
            start, stop = m.offset, m.offset + len(order) * m.repeat
            index[start:stop] = index[start:stop].view(len(order), m.repeat)[order.cpu()].flatten()
    return indices


def _check(name: str, group: Group | None, order: Tensor) -> None:
    if group is None:
        raise BadInput(f"no group {name!r} in this network")
    if group.fixed:
        raise BadInput(f"group {name!r} is fixed: the order of its channels is visible outside the network")
    if order.shape != (group.width,) or not torch.equal(order.cpu().sort().values, torch.arange(group.width)):
        raise BadInput(f"group {name!r}: expected a permutation of {group.width} channels, got {tuple(order.shape)}")


@torch.no_grad()
def l1_orders(model: nn.Module, graph: DependencyGraph) -> dict[str, Tensor]:
    """For every group that may move: its channels by falling Σ|w| of the filters that make them.

    Filter rearrangement of Lin et al., arXiv 2105.14713, section 3.3. Differs: filters that are added or multiplied
    together share one order, by the sum over all of them, where the authors sort some of them and leave the others.
    """
    parameters = dict(model.named_parameters())
    orders = {}
    for group in graph.groups:
        makers = [m for m in group.members if m.produces]
        if group.fixed or not makers:
            continue
        score = torch.zeros(group.width)
        for m in makers:
            filters = parameters[m.path].abs().flatten(1).sum(1).cpu()  # (O,)
            score += filters[m.offset : m.offset + group.width * m.repeat].view(group.width, m.repeat).sum(1)
        orders[group.name] = score.argsort(descending=True, stable=True)
    return orders


@torch.no_grad()
def zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """w ← w · mask for every masked parameter; masks are bool of the parameter's shape, True = keep."""
    if masks:
        torch._foreach_mul_([model.get_parameter(path) for path in masks], list(masks.values()))


Keep = Mapping[str, Tensor]  # name of a ChannelSet -> bool (width,), True = keep; sets that are not named stay whole


@torch.no_grad()
def cut(model: nn.Module, graph: DependencyGraph, keep: Keep) -> DependencyGraph:
    """Removes the channels that `keep` drops from all parameters, in place; the graph of what is left.

    Parameters become new ones, so an optimiser has to be made again. Raises ValueError, before anything is changed, for
    an unknown or fixed set and for one that would keep no channel.
    """
    leaving = _leaving(graph, keep)
    parameters = dict(model.named_parameters())
    changed = {path.rpartition(".")[0] for path, _ in leaving}
    for (path, axis), gone in leaving.items():
        narrow = tensor_at(model, path).detach()
        narrow = narrow.index_select(axis, (~gone).nonzero().flatten().to(narrow.device))
        old = parameters.get(path)
        if old is None:
            owner, _, name = path.rpartition(".")
            model.get_submodule(owner)._buffers[name] = narrow
            continue
        new = parameters[path] = nn.Parameter(narrow, old.requires_grad)
        for owner, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is old:  # under each of its names
                    module._parameters[name] = new
                    changed.add(owner)
    for path in changed:
        _restate_widths(model.get_submodule(path))
    for channels in graph.sets:
        for (path, side), owners in channels.pads.items():
            if channels.name in keep:
                module = model.get_submodule(path)
                removed = int((~keep[channels.name].cpu())[owners[owners >= 0]].sum())
                setattr(module, side, getattr(module, side) - removed)
    return graph.narrowed(keep)


def narrow(model: nn.Module, graph: DependencyGraph, kept: Mapping[str, Tensor]) -> DependencyGraph:
    """Cuts a dense network to the channels of an earlier run's outcome; its weights are loaded after that."""
    widths = {s.name: s.width for s in graph.sets}
    if unknown := next((name for name in kept if name not in widths), None):
        raise BadInput(f"a network with channels {unknown!r} was pruned; this architecture has none of that name")
    keep = {name: torch.zeros(widths[name], dtype=torch.bool) for name in kept}
    for name, index in kept.items():
        if len(index) and int(index.max()) >= widths[name]:
            raise BadInput(f"{name} kept channel {int(index.max())}, but has {widths[name]} in this architecture")
        keep[name][index] = True
    return cut(model, graph, keep)


def _leaving(graph: DependencyGraph, keep: Keep) -> dict[tuple[str, int], Tensor]:
    """(path, axis) -> bool (length,), True where an entry goes; only axes that lose any."""
    sets = {channels.name: channels for channels in graph.sets}
    leaving: dict[tuple[str, int], Tensor] = {}
    for name, kept in keep.items():
        channels = sets.get(name)
        if channels is None:
            raise BadInput(f"no channels {name!r} in this network")
        if kept.shape != (channels.width,) or kept.dtype != torch.bool:
            raise BadInput(f"{name}: expected {channels.width} truth values, got {tuple(kept.shape)} {kept.dtype}")
        if bool(kept.all()):
            continue
        if channels.fixed:
            raise BadInput(f"{name}: the number of its channels is visible outside the network, or fixed in its code")
        if not bool(kept.any()):
            raise BadInput(f"{name}: none of {channels.width} channels would be left")
        for place in channels.places:
            gone = channels.entries(place, ~kept)
            leaving[place] = leaving[place] | gone if place in leaving else gone
    return leaving


def tensor_at(model: nn.Module, path: str) -> Tensor:
    """The parameter or buffer of that path."""
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def depthwise(model: nn.Module, channels: ChannelSet) -> list[str]:
    """Paths of the depthwise filters that the channels pass."""
    aside = (*channels.makers, *channels.gates)
    paths = [
        path for path, axis in channels.places if axis == 0 and path not in aside and path not in channels.transposed
    ]
    modules = [(path, model.get_submodule(path.rpartition(".")[0])) for path in paths if path.endswith("weight")]
    return [path for path, module in modules if isinstance(module, CONVOLUTIONS)]


def _restate_widths(module: nn.Module) -> None:
    """The numbers a layer keeps beside its weights, from their new shapes."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):  # grouped ones are never cut
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, CONVOLUTIONS):
        outputs, inputs = module.weight.shape[:2]
        if module.groups == module.in_channels > 1:  # depthwise
            module.groups = outputs * module.groups // module.out_channels
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.GroupNorm):
        if module.weight is not None and module.num_groups == module.num_channels:
            module.num_groups = module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.modules.batchnorm._NormBase):  # of batches and of instances
        module.num_features = len(module.running_mean if module.weight is None else module.weight)


@torch.no_grad()
def merge(
    model: nn.Module, graph: DependencyGraph, into: Mapping[str, Tensor], shares: Mapping[str, Tensor] | None = None
) -> DependencyGraph:
    """Adds the columns that read channel i to those that read channel into[i], then cuts every channel but those.

    `into` maps set names to (width,) indices with into[into[i]] = into[i]. Where merged channels are equal the function
    is kept: sum_i W_i x_i = (sum_i W_i) x. Source: Ding et al., CVPR 2019, arXiv 1904.03837, section 3.2. With
    `shares`, (width,) by set, it adds shares[i] times those columns, for x_i = shares[i] x.
    """
    for channels in graph.sets:
        target = into.get(channels.name)
        if target is None:
            continue
        if not torch.equal(target[target], target):
            raise BadInput(f"{channels.name}: a channel is merged into one that is merged itself")
        for path, axis in channels.reads:
            weight, positions = tensor_at(model, path).transpose(0, axis), channels.positions((path, axis))
            for i, j in enumerate(target.tolist()):
                if i != j:
                    share = 1.0 if shares is None else float(shares[channels.name][i])
                    weight[positions[j]] += share * weight[positions[i]]
    keep = {name: target == torch.arange(len(target)) for name, target in into.items()}
    return cut(model, graph, keep)
