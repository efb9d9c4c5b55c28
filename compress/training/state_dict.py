"""Which tensors of a checkpoint are the network's, and under which names: the ways in which programs wrap them.

Beside a state dict lie optimisers and settings, and it has a key of its own; DataParallel, torch.compile, FSDP and
Lightning put their name before each tensor's; a pruner keeps the mask beside the raw weight.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from kerf.errors import BadInput

# Where the trained weights are, and where their moving average. The weights win where a file has both: they are what
# the file's training went on from, and the average is a choice that its reader makes and kerf only names.
TRAINED = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params", "module")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema")
OUTERMOST = ("module", "model", "net", "network")  # attributes in which wrappers keep the whole network
# the same of wrappers that may stand around any part of one, and that nobody else calls so: torch.compile,
# Lightning Fabric, FSDP, activation checkpoints
ANYWHERE = ("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTERS = ("n_averaged", "initted", "step")  # of moving averages, beside the network's tensors
RUN = ("model", "momentum", "best", "mask", "kept", "pressure", "snapshot")  # what kerf keeps to resume a run
LIGHTNING = "pytorch-lightning_version"

Say = Callable[[str], None]


def weights_in(found: object, say: Say) -> dict[str, Tensor]:
    """The network's tensors by the network's own names, masks applied; `say` hears what was chosen among several.

    Raises ValueError, which says what there is instead, for anything but a state dict.
    """
    lightning = isinstance(found, Mapping) and LIGHTNING in found
    weights = {name: value for name, value in _unwrapped(found, say).items() if isinstance(value, Tensor)}
    if not weights:
        keys = f", only {', '.join(map(str, [*found][:4]))}" if isinstance(found, Mapping) and found else ""
        raise BadInput(f"holds no tensors{keys}; expected a state dict")
    return masked(_own_names(weights, lightning, say))


def _unwrapped(found: object, say: Say) -> dict[str, object]:
    while True:
        if not isinstance(found, Mapping):
            raise BadInput(f"holds a {type(found).__name__}, expected a state dict")
        holding = [key for key in (*TRAINED, *AVERAGED) if _has_tensors(found.get(key))]
        if not holding and not _has_tensors(found):
            holding = [key for key, value in found.items() if _has_tensors(value)]
            if len(holding) > 1:
                raise BadInput(
                    f"holds several state dicts, {', '.join(map(str, holding[:4]))}: expected one, or one of them "
                    f"under the key {TRAINED[0]!r} or {TRAINED[2]!r}; save the one you mean alone"
                )
        if not holding:
            return {name: value for name, value in found.items() if isinstance(name, str)}
        if len(holding) > 1:
            say(f"holds {' and '.join(map(repr, holding))}: taken is {holding[0]!r}; save another one alone to take it")
        found = found[holding[0]]


def _has_tensors(value: object) -> bool:
    """Of a state dict, or of one level around it."""
    if not isinstance(value, Mapping):
        return False
    inner = [v for key in (*TRAINED, *AVERAGED) if isinstance(v := value.get(key), Mapping)]
    named = [*value.items(), *(item for mapping in inner for item in mapping.items())]
    return any(isinstance(tensor, Tensor) and isinstance(name, str) for name, tensor in named)


def _own_names(weights: dict[str, Tensor], lightning: bool, say: Say) -> dict[str, Tensor]:
    """Wrappers' names off, in any order and number; a name before the whole network only where all have it."""
    if {name.partition(".")[0] for name in weights} <= set(RUN):
        weights = {name: w for name, w in weights.items() if name.startswith("model.")} or weights
    while True:
        counters = [n for n in COUNTERS if n in weights and weights[n].ndim == 0]
        named = {name: w for name, w in weights.items() if name not in counters}
        first = {name.partition(".")[0] for name in named}
        if lightning and len(first) > 1 and (held := next((o for o in OUTERMOST if o in first), None)):
            others = sorted(first - {held})
            say(f"is Lightning's: taken is {held!r}; beside it are {', '.join(others[:3])}")
            weights, lightning = {n: w for n, w in named.items() if n.startswith(f"{held}.")}, False
        elif len(first) == 1 and first <= {*OUTERMOST, *ANYWHERE} and all("." in name for name in named):
            weights = {name.partition(".")[2]: w for name, w in named.items()}
        else:
            break
    bare = {name: _without_inner(name) for name in weights}
    if len(set(bare.values())) == len(bare):  # else two tensors would have one name
        weights = {bare[name]: w for name, w in weights.items()}
    return weights


def _without_inner(name: str) -> str:
    first, *rest = name.split(".")
    return ".".join([first, *(part for part in rest if part not in ANYWHERE)])


def masked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Raw weights times the masks beside them: the network that is meant is the product of the two.

    layer.weight with layer.mask as the 1×N authors keep them, weight_orig with weight_mask as torch.nn.utils.prune.
    """
    found = dict(weights)
    for name in weights:
        if name.endswith("_mask") and (raw := f"{name.removesuffix('_mask')}_orig") in found:
            found[name.removesuffix("_mask")] = found.pop(raw) * found.pop(name)
        elif name.endswith(".mask"):
            mask, target = found.pop(name), f"{name.removesuffix('mask')}weight"
            if target in found:
                found[target] = found[target] * mask
    return found
