"""A file of weights into a network: a dense one, or one that has lost channels since."""

from pathlib import Path

from torch import Tensor, nn

from compress import checkpoint, surgery
from compress.graph import DependencyGraph


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
