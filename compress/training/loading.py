"""A file of weights into a network: a dense one, or one that has lost channels since."""

from pathlib import Path

from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training import checkpoint
from kerf.compress.training.quantise import Grid, from_json
from kerf.errors import BadInput


def load_network(model: nn.Module, path: Path, arch: str, example: Tensor) -> dict[str, Tensor]:
    """Cuts the dense `arch` in `model` to the channels that the file's network has, and loads its weights.

    ``example`` is an input (1, C, H, W). Returns which channels those are, by set; nothing for a dense network. Raises
    ValueError or FileNotFoundError for a file that does not fit.
    """
    kept = checkpoint.kept_channels(path, arch)
    if kept:
        surgery.narrow(model, DependencyGraph.trace(model, example), kept)
    checkpoint.load_weights(model, path)
    return kept


def load_grids(model: nn.Module, path: Path) -> dict[str, Grid]:
    """On what the layers of the file's network compute, by module; nothing where they compute in f32.

    Raises ValueError for what is not of this network.
    """
    state = checkpoint.load_state(path) if path.suffix == ".safetensors" else {}
    try:
        return from_json(state.get("quantised", {}), model)
    except ValueError as error:
        raise BadInput(f"{path}: in its header, {error}") from None
