"""kerf makes trained convolutional networks small and fast, and proves it.

kerf.compress   pruning, in torch
kerf.kernels    sparse and dense kernels, in TVM
kerf.deploy     .onnx to a verified library, and what runs it
kerf.tune       the search for the fastest kernels
"""

from importlib import metadata
from pathlib import Path

_above = Path(__file__).resolve().parent.parent
if (_above / "imagenet.py").is_file():  # a checkout: there the packages lie beside this folder, not in it
    __path__.append(str(_above))

try:
    __version__ = metadata.version("kerf")
except metadata.PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0.2.0"
