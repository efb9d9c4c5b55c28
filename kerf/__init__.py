"""kerf makes trained convolutional networks small and fast, and proves it.

    kerf.prune(model, "one_by_n", example=x, n=4, sparsity=0.5)   a network in torch, pruned, and a handle that holds it
    kerf.sensitivity(model, "one_by_n", example=x, data=loader)   what pruning each layer costs
    kerf.prune_onnx("model.onnx", "small.onnx", "images/")        a file pruned by calibration images, without training
    kerf.export(model, x, "model.onnx")                           the network as a file, compared with torch
    kerf.quantise("model.onnx", "int8.onnx", "images/")           the file on 8-bit integers, ranges by calibration
    kerf.compile("model.onnx")                                    a bundle: tuned, verified and raced
    kerf.load("model.kerf").run(x)                                a bundle at work: numpy in, numpy out; no torch
    kerf.inspect("model.onnx")                                    what each layer holds, and what to expect of it

Below them are kerf.compress (pruning, torch), kerf.kernels (TVM), kerf.deploy (.onnx to bundle) and kerf.tune (search).
What goes wrong and a person can mend is a KerfError.
"""

import os
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerf.errors import BadInput, DeviceLost, KerfError, Mismatch, Unsupported

if TYPE_CHECKING:
    from kerf.compress.api import Pruned, prune, sensitivity
    from kerf.compress.onnx_file.pruning import prune_onnx
    from kerf.deploy.export import export
    from kerf.deploy.quantise.quantise import quantise
    from kerf.deploy.report.inspect import inspect
    from kerf.deploy.runtime.session import load
    from kerf.tune.pipeline import Bundle, compile

__all__ = [
    "BadInput",
    "Bundle",
    "DeviceLost",
    "KerfError",
    "Mismatch",
    "Pruned",
    "Unsupported",
    "compile",
    "export",
    "inspect",
    "load",
    "prune",
    "prune_onnx",
    "quantise",
    "sensitivity",
]

# Where each door's code is: torch, or TVM's compiler, is loaded when a door is opened that needs it, and not before.
_DOORS = {
    **dict.fromkeys(("Pruned", "prune", "sensitivity"), "kerf.compress.api"),
    "prune_onnx": "kerf.compress.onnx_file.pruning",
    **dict.fromkeys(("Bundle", "compile"), "kerf.tune.pipeline"),
    "export": "kerf.deploy.export",
    "inspect": "kerf.deploy.report.inspect",
    "load": "kerf.deploy.runtime.session",
    "quantise": "kerf.deploy.quantise.quantise",
}

# ONNX Runtime from 1.29 on tells its maker of every network that it loads, and leaves files for that where temporary
# ones lie: not by kerf, unless whoever starts it says otherwise. It reads this once, when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_above = Path(__file__).resolve().parent.parent
if (_above / "imagenet.py").is_file():  # a checkout: there the packages lie beside this folder, not in it
    __path__.append(str(_above))

try:
    __version__ = metadata.version("kerf")
except metadata.PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'kerf' has no attribute {name!r}")
    try:
        return getattr(import_module(_DOORS[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "safetensors"):
            raise
        raise ImportError(f"kerf.{name} needs {error.name}: pip install 'kerf[train]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
