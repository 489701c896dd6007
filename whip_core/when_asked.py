"""A package's own names, imported when somebody asks for one.

pytest imports `whip_core.pytest_plugin` in every project of an environment, and an agent
needs no broker: neither should wait for all of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable


def find(package: str, **homes: str) -> Callable[[str], object]:
    """A `__getattr__` for `package`. `homes` says of each name which module (`.module`) has it.

    A module of that very name is meant itself.
    """

    def __getattr__(name: str) -> object:  # noqa: N807  # it is one
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(homes[name], package)
        return module if homes[name] == f".{name}" else getattr(module, name)

    return __getattr__
