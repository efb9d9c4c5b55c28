"""State on disk: safetensors for tensors, JSON for the rest, never a pickle that can run code.

Every file is written under a temporary name and renamed, so a killed process leaves the previous file, not half of a
new one. A checkpoint is one file: its JSON travels in the safetensors header, because two files can come apart.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kerf.errors import BadInput
from kerf.files import replacing

HEADER = "kerf"
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which others keep the state dict in a .pth
PREFIXES = ("module.", "model.")  # DataParallel's, and a checkpoint of our own


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> None:
    """Writes tensors and a JSON-able `state` into one safetensors file, atomically."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(own, temporary, metadata={HEADER: json.dumps(dict(state or {}))})


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a file written by `save`; the state of another program's safetensors file is empty.

    Raises FileNotFoundError, or ValueError when the file is no safetensors file or is cut short.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _state(file)  # noqa: SIM118


def load_state(path: Path) -> dict[str, Any]:
    """The state alone: `load` without reading the tensors, with the same errors."""
    with _opened(path) as file:
        return _state(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not a whole safetensors file ({error}); save it again") from None


def _state(file: safe_open) -> dict[str, Any]:
    return json.loads((file.metadata() or {}).get(HEADER, "{}"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, .pth or .pt, with wrappers, prefixes and a seed checkpoint's masks resolved.

    Raises FileNotFoundError, or ValueError for a file that holds anything but tensors or has NaN or infinity in them.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        found = load(path)[0]
    elif not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: expected a .safetensors, .pth or .pt file")
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types here, pickle's and zipfile's among them
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadInput(f"{path} cannot be read as a state dict of plain tensors: {reason}") from None
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping):
        raise BadInput(f"{path} holds a {type(found).__name__}, expected a state dict")
    weights = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in weights):
            weights = {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}
    # The 1xN authors' files keep the raw weight beside its mask; the network they mean is the product of the two.
    for name in [n for n in weights if n.endswith(".mask")]:
        mask = weights.pop(name)
        target = name.removesuffix("mask") + "weight"
        if target in weights:
            weights[target] = weights[target] * mask
    for name, weight in weights.items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise BadInput(f"{path}: {name} has NaN or infinite values; expected finite weights")
    return weights


def kept_channels(path: Path, arch: str) -> dict[str, Tensor]:
    """Which channels of a dense `arch` the network in this file has left, by set; nothing for a dense one.

    Raises ValueError if the file says that it is of another architecture, or that in a form that is not ours.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    state = load_state(path)
    if state.get("arch", arch) != arch:
        raise BadInput(f"{path} is a {state['arch']}: give --arch {state['arch']}")
    kept = state.get("kept") or {}
    if not isinstance(kept, dict) or not all(map(_are_indices, kept.values())):
        raise BadInput(f"{path}: kept in its header is not a table of channel numbers")
    return {name: torch.tensor(index, dtype=torch.long) for name, index in kept.items()}


def _are_indices(value: object) -> bool:
    return isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a file into `model`, strictly. Raises ValueError naming the first tensors that do not fit."""
    weights, wanted = read_weights(path), model.state_dict()
    for name, tensor in weights.items():
        # a classifier kept as a 1x1 convolution, as the 1xN authors do, is the same matrix
        if name in wanted and tensor.ndim == 4 and wanted[name].ndim == 2 and tensor.shape[2:] == (1, 1):
            weights[name] = tensor.flatten(1)
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = [f"no {name}" for name in wanted if name not in weights and name not in optional]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    wrong += [f"unexpected {name}" for name in weights if name not in wanted]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BadInput(f"{path} is a checkpoint of another architecture: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(weights, strict=False)
