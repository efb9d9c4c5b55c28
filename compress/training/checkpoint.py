"""State on disk: safetensors for tensors, JSON for the rest, never a pickle that can run code.

Every file is written under a temporary name and renamed, so a killed process leaves the previous file, not half of a
new one. A checkpoint is one file: its JSON travels in the safetensors header, because two files can come apart.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kerf import gate
from kerf.compress.models import authors
from kerf.compress.training import pickled
from kerf.compress.training.state_dict import Say, weights_in
from kerf.errors import BadInput
from kerf.files import replacing
from kerf.gate import refuse_special

HEADER = "kerf"


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
        return {name: file.get_tensor(name) for name in file.keys()}, _state(path, file)  # noqa: SIM118


def load_state(path: Path) -> dict[str, Any]:
    """The state alone: `load` without reading the tensors, with the same errors."""
    with _opened(path) as file:
        return _state(path, file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    refuse_special(Path(path), "a .safetensors checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, UnicodeDecodeError) as error:
        with open(path, "rb") as raw:
            pickle = raw.read(2) in (b"PK", b"\x80\x02")
        what = "by its content it is torch.save's: rename it to .pth" if pickle else "save it again"
        raise BadInput(f"{path} is not a whole safetensors file ({pickled.printable(error)}); {what}") from None


class State(TypedDict, total=False):
    """What kerf's own header says, as far as others than a resumed run read it."""

    arch: str
    image_size: int
    num_classes: int | None
    method: str
    kept: dict[str, list[int]] | None


MOST_PIXELS = 1 << 14  # of a side of an image


def _state(path: Path, file: safe_open) -> dict[str, Any]:
    text = (file.metadata() or {}).get(HEADER, "{}")
    expected = "what kerf writes there; save it again"
    state = gate.parsed(text, dict[str, Any], f"{path}: its header's {HEADER}", expected, with_nan=True)
    gate.converted(state, State, f"{path}: its header's {HEADER}", expected)
    if not 1 <= state.get("image_size", 1) <= MOST_PIXELS:
        raise BadInput(f"{path}: its header says images of {state['image_size']}; expected at most {MOST_PIXELS}")
    classes = state.get("num_classes")
    rows = [shape[0] for name in file.keys() if (shape := file.get_slice(name).get_shape())]  # noqa: SIM118
    if classes is not None and not 1 <= classes <= max(rows, default=1):
        raise BadInput(f"{path}: its header says {classes} classes, which none of its tensors has; save it again")
    return state


def read_weights(path: Path, say: Say = lambda _: None) -> dict[str, Tensor]:
    """A state dict from .safetensors, .pth, .pt or .hdf5, with wrappers, prefixes, masks and authors' names resolved.

    `say` hears in a line what was chosen where a file holds several. Raises FileNotFoundError, or ValueError for a file
    that cannot be read as a state dict, or has NaN or infinity in it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: expected a .safetensors, .pth or .pt file")
    refuse_special(path, "a .safetensors, .pth or .pt file")
    found: object
    if path.suffix in authors.HDF5:
        found = authors.read_hdf5(path)
    else:
        found = load(path)[0] if path.suffix == ".safetensors" else pickled.read(path)
    try:
        weights = weights_in(found, lambda line: say(f"{path} {line}"))
        weights = authors.renamed(weights, lambda line: say(f"{path}: {line}"))
    except ValueError as error:
        raise BadInput(f"{path} {pickled.printable(error)}") from None
    return {name: _as_floats(path, name, weight) for name, weight in weights.items()}


def _as_floats(path: Path, name: str, weight: Tensor) -> Tensor:
    """The tensor as strided numbers in memory. Raises ValueError for one that has none, or infinite ones."""
    name = pickled.printable(name)
    if weight.is_quantized or weight.is_meta or weight.is_complex():
        kind = "quantised" if weight.is_quantized else "empty (of device meta)" if weight.is_meta else "complex"
        raise BadInput(f"{path}: {name} is {kind}; expected real weights: save the network's f32 state_dict()")
    weight = weight.to_dense() if weight.layout != torch.strided else weight
    if weight.is_floating_point() and not torch.isfinite(weight).all():
        raise BadInput(f"{path}: {name} has NaN or infinite values; expected finite weights")
    return weight


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


def load_weights(model: nn.Module, path: Path, new_head: bool = False, say: Say = lambda _: None) -> None:
    """Loads a file into `model`, strictly. Raises ValueError naming the first tensors that do not fit.

    With `new_head` one thing may differ: where the file tells another number of classes apart, the layer that does
    keeps the weights that `model` has, and `say` hears that.
    """
    weights, wanted = read_weights(path, say), model.state_dict()
    for name, tensor in weights.items():
        # a classifier kept as a 1x1 convolution, as the 1xN authors do, is the same matrix
        if name in wanted and tensor.ndim == 4 and wanted[name].ndim == 2 and tensor.shape[2:] == (1, 1):
            weights[name] = tensor.flatten(1)
    head = _other_head(model, weights, wanted)
    if head:
        layer, theirs, ours = head
        if not new_head:
            raise BadInput(
                f"{path} tells {theirs} classes apart ({layer}.weight is {tuple(weights[f'{layer}.weight'].shape)}), "
                f"and {ours} are expected; give the images that it was trained on, or train it with --pretrained_model"
            )
        weights |= {name: wanted[name] for name in (f"{layer}.weight", f"{layer}.bias") if name in wanted}
        say(f"{path} tells {theirs} classes apart, these images have {ours}: {layer} is new, its weights random")
    if wrong := _differences(weights, wanted):
        raise BadInput(f"{path} is a checkpoint of another architecture: {wrong}")
    model.load_state_dict(weights, strict=False)


def _other_head(
    model: nn.Module, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[str, int, int] | None:
    """(layer, its classes in the file, in the model) if all that differs is the number of one layer's outputs."""
    if _names_apart(weights, wanted) != ([], []):
        return None
    other = [name for name in weights if weights[name].shape != wanted[name].shape]
    layers, counts = {name.rpartition(".")[0] for name in other}, {tuple(weights[name].shape[:1]) for name in other}
    if len(layers) != 1 or len(counts) != 1 or any(weights[n].shape[1:] != wanted[n].shape[1:] for n in other):
        return None
    (layer,) = layers
    if not isinstance(model.get_submodule(layer), nn.Linear):
        return None
    return layer, len(weights[f"{layer}.weight"]), len(wanted[f"{layer}.weight"])


def _names_apart(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names that only the model has and that only the file has; old torch did not count batches."""
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    return missing, [name for name in weights if name not in wanted]


def _differences(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """How a state dict and a model's own differ, with the first few names of each kind; empty where they do not."""
    missing, unexpected = _names_apart(weights, wanted)
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    parts = []
    if shapes:
        parts.append(f"{_first(shapes, '; ')}")
    if missing:
        parts.append(f"it lacks {len(missing)} of {len(wanted)} tensors, {_first(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} of its {len(weights)} tensors are of no layer, {_first(unexpected)}")
    return "; ".join(parts)


def _first(names: list[str], between: str = ", ") -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return between.join(map(pickled.printable, names[:3])) + more
