"""What a checkpoint holds, as plain values: what --json prints, and tables are made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kerf.compress.models import create
from kerf.compress.network import cost
from kerf.compress.training import checkpoint
from kerf.compress.training.loading import load_grids, load_network
from kerf.compress.training.quantise import Grids, mean_bits
from kerf.errors import BadInput

Widths = tuple[int, int]  # outputs, inputs
NEARLY_ZERO = 1e-5  # |w| that the plain listing counts as zero, as ResRep's display_hdf5.py does


def describe(path: Path) -> dict[str, Any]:
    """{file, arch, image_size, method, mean_bits, params, macs, layers} of a network that kerf saved.

    {file, bytes, tensors} of any other file. mean_bits: of weights, None where they are not quantised.

    layers: [{name, shape, outputs, inputs, macs, zeros}], pairs being of the dense network and of this one. tensors:
    [{name, shape, numbers, mean, std, nearly_zero}], statistics None where there are none. Raises FileNotFoundError,
    or ValueError with one line for what is no checkpoint or contradicts its own header.
    """
    path = Path(path)
    state = checkpoint.load_state(path) if path.suffix == ".safetensors" else {}
    is_ours = isinstance(state, dict) and {"arch", "image_size"} <= state.keys()
    return {"file": str(path), **(_network(path, state) if is_ours else _tensors(path))}


def _network(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    try:
        model, grids, widths, dense, left = _rebuild(path, state)
    except (ValueError, RuntimeError) as error:  # torch's own where the header's image size is too small
        line = " ".join(str(error).split())
        raise BadInput(line if str(path) in line else f"{path}: {line}") from None
    layers = []
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
        **{"arch": state["arch"], "image_size": state["image_size"], "method": state.get("method", "unknown")},
        "mean_bits": mean_bits(model, grids) if grids else None,
        **{"params": [dense.params, left.params], "macs": [dense.macs, left.macs], "layers": layers},
    }


def _tensors(path: Path) -> dict[str, Any]:
    weights = checkpoint.read_weights(path)
    if not weights:
        raise BadInput(f"{path} holds no tensors")
    tensors = []
    for name, weight in weights.items():
        statistics: list[float | None] = [None, None, None]
        if weight.numel() and not weight.is_complex():
            w = weight.double()
            found = (w.mean(), w.std(correction=0), (w.abs() <= NEARLY_ZERO).double().mean())
            statistics = [float(value) for value in found]
        named = dict(zip(("mean", "std", "nearly_zero"), statistics, strict=True))
        tensors.append({"name": name, "shape": list(weight.shape), "numbers": weight.numel(), **named})
    return {"bytes": sum(weight.nbytes for weight in weights.values()), "tensors": tensors}


def _rebuild(path: Path, state: Mapping[str, Any]) -> tuple[nn.Module, Grids, dict[str, Widths], cost.Cost, cost.Cost]:
    """The network in the file, its grids, outputs and inputs of each layer when it was dense, the cost then and now."""
    arch, size = state["arch"], state["image_size"]
    classes = state.get("num_classes")
    if not isinstance(arch, str) or type(size) is not int or type(classes) not in (int, type(None)):
        raise BadInput(f"its header says arch {arch!r}, image_size {size!r}, num_classes {classes!r}")
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
    return module.out_channels, module.in_channels
