"""`compress`, `deploy`, `kernels` and `tune` without `kerf.` in front, as programs in a checkout imported them once.

Not installed: there `kernels` belongs to another distribution. Every module is still loaded once, as kerf.<name>.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _StandIn(MetaPathFinder, Loader):
    """Finds <package>.x where it is kerf.<package>.x."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.startswith(f"{self.package}.") else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty one, which exec_module exchanges."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(f"kerf.{module.__name__}")


def stand_in(package: str) -> None:
    """Called by ``package`` while it is imported under its bare name: from now on that is kerf.<package>."""
    sys.meta_path.insert(0, _StandIn(package))
    sys.modules[package] = import_module(f"kerf.{package}")
