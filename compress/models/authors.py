"""Weights that authors of papers published, by their names and in their form: 1×N's .pth files and ResRep's HDF5.

Code:  github.com/lmbxmu/1xN (models/mobilenet_v1.py, mobilenet_v2.py, mobilenet_v3.py), github.com/DingXiaoH/ResRep
    (base_model/stagewise_resnet.py, transform_torchvision.py)
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kerf.errors import BadInput

HDF5 = (".hdf5", ".h5")
Weights = dict[str, Tensor]


def read_hdf5(path: Path) -> Weights:
    """Name -> array of a file as ResRep and C-SGD write them: a flat table, in whose names "/" is "+".

    Raises BadInput for what is no such file, and where h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise BadInput(f"{path}: HDF5 is read by h5py, which is not installed: pip install kerf[hdf5]") from None
    try:
        with h5py.File(path, "r") as file:
            arrays = {name.replace("+", "/"): value[()] for name, value in file.items() if hasattr(value, "dtype")}
    except OSError as error:
        raise BadInput(f"{path} is no whole HDF5 file ({' '.join(str(error).split())}); copy it again") from None
    arrays.pop("deps", None)  # widths, which the arrays have as well
    return {name: torch.as_tensor(value) for name, value in arrays.items()}


def renamed(weights: Weights, say: Callable[[str], None] = lambda _: None) -> Weights:
    """The same weights under the names that they have in this zoo's networks; of any others, as they are.

    Raises BadInput for networks of these authors that compute another function than ours.
    """
    for names, translate in FORMS:
        if all(name in weights for name in names):
            return translate(weights, say)
    return weights


def _mobilenet_v1(weights: Weights, _: Callable[[str], None]) -> Weights:
    """1×N's: the stem beside the blocks, a classifier that is a list of one."""

    def ours(name: str) -> str:
        first, second, rest = name.split(".", 2)
        if first == "conv1":
            return f"features.0.{second}.{rest}"
        return f"classifier.{rest}" if first == "classifier" else f"features.{int(second) + 1}.{rest}"

    return {ours(name): w for name, w in _without_biases(weights).items()}


def _mobilenet_v2(weights: Weights, _: Callable[[str], None]) -> Weights:
    """1×N's: the layers of a block in one list, activations among them, where torchvision's has one for each."""
    weights = _without_biases(weights)

    def ours(name: str) -> str:
        found = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(\w+)", name)
        if not found:
            return name
        block, layer, rest = found[1], int(found[2]), found[3]
        convolution, norm = divmod(layer, 3)  # convolution, batch norm, activation, and again
        last = 2 if f"features.{block}.conv.6.weight" in weights else 1
        if convolution < last:
            return f"features.{block}.conv.{convolution}.{norm}.{rest}"
        return f"features.{block}.conv.{last + norm}.{rest}"

    return {ours(name): w for name, w in weights.items()}


def _without_biases(weights: Weights) -> Weights:
    """Biases of convolutions go into the mean of the batch norm behind them: μ' = μ − b."""
    left = dict(weights)
    for name in weights:
        layer, _, kind = name.rpartition(".")
        parent, _, place = layer.rpartition(".")
        mean = f"{parent}.{int(place) + 1 if place.isdigit() else place}.running_mean"
        if kind == "bias" and mean in weights and weights[f"{layer}.weight"].ndim == 4:
            left[mean] = left[mean] - left.pop(name)
    return left


def _mobilenet_v3(weights: Weights, _: Callable[[str], None]) -> Weights:
    raise BadInput(
        "it is the 1xN authors' MobileNet-V3, whose blocks gate channels before their activation, where torchvision's, "
        "the ones here, do so behind it: these weights fit no network of the zoo; start from "
        "--pretrained_model torchvision"
    )


def _stages(weights: Weights, say: Callable[[str], None]) -> Weights:
    """ResRep's and C-SGD's: stages of blocks, a projection beside each stage."""
    if any("compactor" in name for name in weights):
        raise BadInput(
            "it has ResRep's compactors in it, of a run that is not over: give the network that it began with"
        )
    if not any(".bn." in name for name in weights):
        raise BadInput("it is a network that ResRep has converted, narrow and without batch norms: give the dense one")
    cifar = "linear.weight" in weights
    if cifar:
        say("its authors normalise images by mean 0.5 and deviation 0.5, here those of ImageNet: train it before use")
    shortcut = "projection" if cifar else "downsample"

    def ours(name: str) -> str:
        name = re.sub(r"^stage1\.conv1\.", "conv1.", name)
        name = re.sub(r"^stage(\d)\.projection\.(conv|bn)\.", rf"layer\1.0.{shortcut}.\2.", name)
        name = name.replace(f"{shortcut}.conv.", f"{shortcut}.0.").replace(f"{shortcut}.bn.", f"{shortcut}.1.")
        name = re.sub(r"^stage(\d)\.block(\d+)\.", r"layer\1.\2.", name)
        return re.sub(r"conv(\d)\.(conv|bn)\.", lambda m: f"{m[2]}{m[1]}.", name)

    return {ours(name): w for name, w in weights.items()}


# Names that these authors' files have and no other's -> how theirs become ours.
FORMS: tuple[tuple[tuple[str, ...], Callable[[Weights, Callable[[str], None]], Weights]], ...] = (
    (("conv1.0.weight", "features.0.3.weight"), _mobilenet_v1),
    (("features.2.conv.4.running_mean", "classifier.3.weight"), _mobilenet_v3),
    (("features.1.conv.4.running_mean", "features.2.conv.7.running_mean"), _mobilenet_v2),
    (("stage1.block0.conv1.conv.weight",), _stages),
)
