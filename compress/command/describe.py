"""What a checkpoint holds, as plain values: what --json prints, and tables are made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, final

import torch
from torch import nn

from kerf.compress.models import create
from kerf.compress.network import cost
from kerf.compress.pruning.loading import load_grids, load_network
from kerf.compress.training import checkpoint
from kerf.compress.training.quantise import Grids, mean_bits
from kerf.console import one_line
from kerf.errors import BadInput

Widths = tuple[int, int]  # outputs, inputs
NEARLY_ZERO = 1e-5  # |w| that the plain listing counts as zero, as ResRep's display_hdf5.py does


class Layer(TypedDict):
    """Pairs are of the dense network and of the one in the file."""

    name: str
    shape: list[int]
    outputs: list[int]
    inputs: list[int]
    macs: list[int]
    zeros: float  # share of the weights


@final
class Network(TypedDict):
    """A network that kerf saved."""

    file: str
    arch: str
    image_size: int
    method: str
    mean_bits: float | None  # of a weight; None where they are not quantised
    params: list[int]
    macs: list[int]
    layers: list[Layer]


class Statistics(TypedDict):
    """None where there are none: of no number, or of complex ones."""

    mean: float | None
    std: float | None
    nearly_zero: float | None


class Entry(Statistics):
    name: str
    shape: list[int]
    numbers: int


@final
class Tensors(TypedDict):
    """Any other file."""

    file: str
    bytes: int
    tensors: list[Entry]


def describe(path: Path) -> Network | Tensors:
    """Raises FileNotFoundError, or BadInput with one line for what is no checkpoint or contradicts its own header."""
    path = Path(path)
    state = checkpoint.load_state(path) if path.suffix == ".safetensors" else {}
    is_ours = isinstance(state, dict) and {"arch", "image_size"} <= state.keys()
    return _network(path, state) if is_ours else _tensors(path)


def _network(path: Path, state: Mapping[str, Any]) -> Network:
    try:
        model, grids, widths, dense, left = _rebuild(path, state)
    except (ValueError, RuntimeError) as error:  # torch's own where the header's image size is too small
        line = one_line(error)
        raise BadInput(line if str(path) in line else f"{path}: {line}") from None
    layers: list[Layer] = []
    for name, before in dense.layers.items():
        (outputs, inputs), (outputs_left, inputs_left) = widths[name], _widths(model, name)
        layers.append(
            {
                "name": name,
                "shape": list(model.get_parameter(name).shape),
                "outputs": [outputs, outputs_left],
                "inputs": [inputs, inputs_left],
                "macs": [before.macs, left.layers[name].macs],
                "zeros": 1 - cost.element_density(model, [name]),
            }
        )
    return {
        "file": str(path),
        "arch": state["arch"],
        "image_size": state["image_size"],
        "method": state.get("method", "unknown"),
        "mean_bits": mean_bits(model, grids) if grids else None,
        "params": [dense.params, left.params],
        "macs": [dense.macs, left.macs],
        "layers": layers,
    }


def _tensors(path: Path) -> Tensors:
    weights = checkpoint.read_weights(path)
    if not weights:
        raise BadInput(f"{path} holds no tensors")
    tensors: list[Entry] = [
        {"name": name, "shape": list(weight.shape), "numbers": weight.numel(), **_statistics(weight)}
        for name, weight in weights.items()
    ]
    return {"file": str(path), "bytes": sum(weight.nbytes for weight in weights.values()), "tensors": tensors}


def _statistics(weight: torch.Tensor) -> Statistics:
    if not weight.numel() or weight.is_complex():
        return {"mean": None, "std": None, "nearly_zero": None}
    w = weight.double()
    nearly = (w.abs() <= NEARLY_ZERO).double().mean()
    return {"mean": float(w.mean()), "std": float(w.std(correction=0)), "nearly_zero": float(nearly)}


def _rebuild(path: Path, state: Mapping[str, Any]) -> tuple[nn.Module, Grids, dict[str, Widths], cost.Cost, cost.Cost]:
    """The network in the file, its grids, outputs and inputs of each layer when it was dense, the cost then and now."""
    arch, size = state["arch"], state["image_size"]
    classes = state.get("num_classes")
    if classes is None:
        classes = _classes(path, create(arch, 10, size))
    model, example = create(arch, classes, size).eval(), torch.zeros(1, 3, size, size)
    dense = cost.count(model, example)
    widths = {layer: _widths(model, layer) for layer in dense.layers}
    load_network(model, path, arch, example)
    grids = load_grids(model, path)  # zeros of a quantised weight cost what its other integers do
    zeros = {p: model.get_parameter(p) != 0 for p in dense.layers if not grids}
    return model, grids, widths, dense, cost.count(model, example, zeros)


def _classes(path: Path, model: nn.Module) -> int:
    """How many the file's last linear layer tells apart."""
    last = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    weights = checkpoint.read_weights(path)
    if last not in weights:
        raise BadInput(f"no {last}, which would tell the number of classes")
    return len(weights[last])


def _widths(model: nn.Module, layer: str) -> Widths:
    """Of a convolution or linear layer, by the path of its weight."""
    module = model.get_submodule(layer.rpartition(".")[0])
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.in_channels
    raise TypeError(f"{layer} is of a {type(module).__name__}, expected a convolution or a linear layer")
