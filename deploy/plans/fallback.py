"""What a bundle runs for inputs of sizes that none of its plans is for: the file itself, in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kerf.deploy.frontend import sizes
from kerf.deploy.frontend.loading import load
from kerf.deploy.runtime.manifest import Tensor

FILE = "fallback.onnx"


@dataclass(frozen=True)
class Whole:
    """``contents``: the model; ``sizes``: of its inputs, None for one that the file leaves open, or for all of them."""

    contents: bytes
    sizes: dict[str, list[int | None] | None]

    def opened(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a bundle with this fallback takes."""
        return {
            name: {"dtype": tensor["dtype"], "shape": self.sizes.get(name, tensor["shape"])}
            for name, tensor in inputs.items()
        }

    def unsized(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs, whose sizes depend on those of the inputs."""
        return {
            name: {"dtype": tensor["dtype"], "shape": tensor["shape"] and [None] * len(tensor["shape"])}
            for name, tensor in outputs.items()
        }


def model(path: Path) -> Whole | None:
    """None for a file that fixes all sizes, and for one too large for a single file."""
    loaded = load(path)
    free = sizes.free_sizes(loaded)
    if not free:
        return None
    try:
        contents = loaded.SerializeToString()
    except ValueError:  # more than 2 GB
        return None
    known = {
        name: None if dims is None else [d if isinstance(d, int) and d > 0 else None for d in dims]
        for name, dims in free.items()
    }
    return Whole(contents, known)
