"""This project's recipes, for a trained network: pruning and its training by one word, for those who ask for no more.

Flags of one run, as `published.py` has the authors'. Both were measured in docs/benchmarks/2026-11-30-obs-finetuned.md,
which also says why the rate is not a lower one: validation prefers that where the dense network was trained on the
validation images, since it keeps what was learnt of them by heart, and the test images do not.
"""

from collections.abc import Mapping
from typing import Any

from kerf.compress.methods.published import Published, flags_in_words

# what is pruned; left to the user where a method is named
BLOCKS = {"method": "obs", "rearrange": True, "N": 4}
_TRAINED = {"lr": 0.02, "lr_policy": "cos_step", "warmup_length": 0, "train_batch_size": 128, "distill": 0.9}

OWN: Mapping[str, Published] = {
    "short": Published({**BLOCKS, **_TRAINED, "finetune_epochs": 3}, trained=True),
    "long": Published({**BLOCKS, **_TRAINED, "finetune_epochs": 12}, trained=True),
}


def own_flags(name: str, scale: float, names_method: bool) -> dict[str, Any]:
    """The values of flags by that recipe, epochs times `scale`; without those of BLOCKS where a method is named."""
    values = OWN[name].scaled(scale)
    return {flag: value for flag, value in values.items() if not (names_method and flag in BLOCKS)}


def rows() -> list[dict[str, str]]:
    """In words, for docs."""
    return [{"--recipe": name, "flags": flags_in_words(recipe.flags)} for name, recipe in OWN.items()]
