"""Where plugins come from: entry points of installed packages, modules, and files."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from whip_core.errors import SettingsError
from whip_core.plugin_host import NamedPlugin, Origin
from whip_core.plugin_settings import PluginSettings

BROKER_GROUP = "whip"
AGENT_GROUP = "whip.agent"
"""A group of its own: a plugin for brokers may import what no agent should have to hold."""


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What a user says of plugins: `--plugin`, `--no-plugin` and `--plugin-set`."""

    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def load(self, group: str = BROKER_GROUP) -> list[NamedPlugin]:
        """The installed ones, and those named. Raises `SettingsError` naming the plugin."""
        return load_plugins(self.names, without=self.without, group=group)

    def read_settings(self) -> PluginSettings:
        """Raises `SettingsError`."""
        return PluginSettings.parse(self.settings, os.environ)


def load_plugins(
    names: Iterable[str] = (), *, without: Iterable[str] = (), group: str = BROKER_GROUP
) -> list[NamedPlugin]:
    """The plugins of the entry points in `group`, but for those `without`, then those named.

    A name is a module's, or a file's that ends in .py. A file is run anew each time.
    Raises `SettingsError`, one line, naming the plugin and what is wrong with it.
    """
    return [*_installed(group, frozenset(without)), *(_named(name) for name in names)]


def _installed(group: str, without: frozenset[str]) -> list[NamedPlugin]:
    points = sorted(entry_points(group=group), key=lambda point: (point.name, point.value))
    if unknown := sorted(without - {point.name for point in points}):
        there_are = ", ".join(point.name for point in points) or "none"
        raise SettingsError(
            f"no plugin {unknown[0]} to leave out; installed packages bring: {there_are}"
        )
    return [_of_entry_point(point) for point in points if point.name not in without]


def _of_entry_point(point: EntryPoint) -> NamedPlugin:
    distribution = point.dist
    origin = Origin(
        "entry point",
        point.value,
        distribution.name if distribution else "",
        distribution.version if distribution else "",
    )
    try:
        return NamedPlugin(point.load(), point.name, origin)
    except Exception as error:  # it is somebody else's code that runs here
        raise SettingsError(
            f"cannot load plugin {point.name} of {origin}: {_what(error)}; "
            f"--no-plugin {point.name} leaves it out"
        ) from error


def _named(name: str) -> NamedPlugin:
    is_file = name.endswith(".py")
    try:
        if is_file:
            path = Path(name).expanduser().resolve()
            return NamedPlugin(_run_file(path), path.stem, Origin("file", str(path)))
        return NamedPlugin(importlib.import_module(name), name, Origin("module", name))
    except Exception as error:  # it is somebody else's code that runs here
        hint = "" if is_file else " (a file's name ends in .py)"
        raise SettingsError(f"cannot load plugin {name}: {_what(error)}{hint}") from error


def _run_file(path: Path) -> ModuleType:
    # Two files of one name are two modules; a dataclass in one looks itself up there.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"whip_plugin_{path.stem}_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _what(error: Exception) -> str:
    """One line of it, with its kind where the text alone says little."""
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, ImportError | OSError) and text
        else (f"{type(error).__name__}: {text}" if text else type(error).__name__)
    )
