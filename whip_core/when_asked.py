"""The package's own names, imported when somebody asks for one.

pytest imports `whip_core.pytest_plugin` in every project of an environment, and an agent
needs no broker: neither should wait for all of it.
"""

from __future__ import annotations

import importlib
import sys


def __getattr__(name: str) -> object:
    if name not in sys.modules["whip_core"].__all__:
        raise AttributeError(f"module 'whip_core' has no attribute {name!r}")
    return getattr(importlib.import_module("whip_core.public"), name)
