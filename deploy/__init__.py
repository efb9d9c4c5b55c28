"""From an .onnx file to a verified, fast bundle. Needs no torch (export.py alone does, and only when it is called)."""

from importlib.util import find_spec
from pathlib import Path

# Another distribution owns the import name "kernels"; with it in front, errors would surface far from their cause.
_found = find_spec("kernels")
_origin = Path(_found.origin).parent if _found and _found.origin else None
if _origin != Path(__file__).parent.parent / "kernels":
    raise ImportError(f"the package 'kernels' is {_origin}, not kerf's; uninstall the other one or change sys.path")
