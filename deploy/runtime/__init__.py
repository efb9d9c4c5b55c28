"""Bundles on the machine that runs them. No compiler, no torch."""

from typing import Any


def __getattr__(name: str) -> Any:
    """``from deploy import runtime; runtime.load(…)`` of kerf 0.1, which kerf.load is now; loaded when asked for."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kerf.deploy.runtime.session import load

    return load
