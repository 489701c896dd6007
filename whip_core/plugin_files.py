"""Plugins by name: a module that can be imported, or a Python file."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from whip_core.errors import SettingsError


def load_plugins(names: Iterable[str]) -> list[ModuleType]:
    """Raises `SettingsError` naming the plugin and what is wrong with it."""
    return [_load(name) for name in names]


def _load(name: str) -> ModuleType:
    is_file = name.endswith(".py")
    try:
        return _load_file(Path(name).expanduser()) if is_file else importlib.import_module(name)
    except Exception as error:  # it is somebody else's code that runs here
        what = str(error) or type(error).__name__
        hint = "" if is_file else " (a file's name ends in .py)"
        raise SettingsError(f"cannot load plugin {name}: {what}{hint}") from error


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"whip_plugin_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
