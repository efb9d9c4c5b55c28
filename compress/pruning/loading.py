"""A file of weights into a network: a dense one, or one that has lost channels since."""

from pathlib import Path

from torch import Tensor, nn

from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.training import checkpoint
from kerf.compress.training.quantise import Grid, from_json
from kerf.compress.training.state_dict import Say
from kerf.errors import BadInput


def load_network(
    model: nn.Module, path: Path, arch: str, example: Tensor, new_head: bool = False, say: Say = lambda _: None
) -> dict[str, Tensor]:
    """Cuts the dense `arch` in `model` to the channels that the file's network has, and loads its weights.

    ``example`` is an input (1, C, H, W). With `new_head` the file may be of another number of classes; `say` hears of
    that, and of what was chosen in the file. Returns which channels are left, by set; nothing for a dense network.
    Raises ValueError or FileNotFoundError for a file that does not fit.
    """
    kept = checkpoint.kept_channels(path, arch)
    if kept:
        surgery.narrow(model, DependencyGraph.trace(model, example), kept)
    checkpoint.load_weights(model, path, new_head, say)
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
