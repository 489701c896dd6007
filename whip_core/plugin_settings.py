"""Settings of plugins: declared as a dataclass, given as text, checked before anything starts.

A plugin named `canary` whose dataclass has a field `header` takes it from
`--plugin-set canary.header=x-canary`, else from WHIP_PLUGIN_CANARY_HEADER, else the
field's default.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whip_core.errors import SettingsError

PREFIX = "WHIP_PLUGIN_"
OPTION_VARIABLES = frozenset({"WHIP_PLUGIN_SET"})
"""Variables that begin so and are options of commands: they are nobody's setting."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One setting of one plugin. `value` is what it has; None unless it has been filled."""

    key: str
    type: str
    default: str | None
    """As text; None if it has to be given."""
    help: str
    variable: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """What has been set, as "plugin.key" and text, and the environment to look into besides."""

    values: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, texts: Iterable[str], environ: Mapping[str, str]) -> PluginSettings:
        """Read `plugin.key=value` texts. Raises `SettingsError`."""
        values = {}
        for text in texts:
            path, equals, value = text.partition("=")
            plugin, dot, key = path.rpartition(".")
            if not (equals and dot and plugin and key):
                raise SettingsError(f"plugin setting {path[:80]!r} is not PLUGIN.KEY=VALUE")
            values[path] = value
        return cls(values, {name: environ[name] for name in environ if name.startswith(PREFIX)})

    def check_known(self, plugins: Mapping[str, type | None]) -> list[str]:
        """Raises `SettingsError` for a setting of no plugin, or that its plugin does not have.

        Gives the variables that begin like ours and belong to no plugin: other programs' plugins
        may have them, so they are not an error.
        """
        for path in self.values:
            plugin, _, key = path.rpartition(".")
            if plugin not in plugins:
                hint = _did_you_mean(plugin, plugins)
                raise SettingsError(f"{path}: there is no plugin {plugin}{hint}")
            keys = [each.name for each in _fields(plugins[plugin])]
            if not keys:
                raise SettingsError(f"{path}: plugin {plugin} has no settings")
            if key not in keys:
                known = ", ".join(keys)
                raise SettingsError(f"{path}: plugin {plugin} has no setting {key}; it has {known}")
        ours = {
            variable(plugin, each.name)
            for plugin, declared in plugins.items()
            for each in _fields(declared)
        }
        return sorted(self.environ.keys() - ours - OPTION_VARIABLES)

    def fill(self, plugin: str, declared: type) -> Any:
        """An instance of the dataclass. Raises `SettingsError` naming the setting."""
        found: dict[str, Any] = {}
        for each, read in _readers(plugin, declared):
            where, text = f"{plugin}.{each.name}", self.values.get(f"{plugin}.{each.name}")
            if text is None:
                where = variable(plugin, each.name)
                text = self.environ.get(where)
            if text is not None:
                try:
                    found[each.name] = read(text)
                except ValueError as error:
                    raise SettingsError(f"plugin {plugin}: {where}: {error}") from error
            elif _has_no_default(each):
                raise SettingsError(
                    f"plugin {plugin} needs its setting {each.name}: say "
                    f"--plugin-set {plugin}.{each.name}=… or {where}"
                )
        try:
            return declared(**found)
        except ValueError as error:
            raise SettingsError(f"plugin {plugin}: {error}") from error


def describe(plugin: str, declared: type, filled: object | None = None) -> list[Declared]:
    """The settings that the dataclass declares; a field with `repr=False` keeps its value."""
    hints = typing.get_type_hints(declared)
    found = []
    for each in _fields(declared):
        default = None
        if each.default is not dataclasses.MISSING:
            default = _as_text(each.default)
        elif each.default_factory is not dataclasses.MISSING:
            default = _as_text(each.default_factory())
        value = None
        if filled is not None:
            value = _as_text(getattr(filled, each.name)) if each.repr else "(hidden)"
        found.append(
            Declared(
                key=each.name,
                type=_type_name(hints[each.name]),
                default=default if each.repr or default is None else "(hidden)",
                help=str(each.metadata.get("help", "")),
                variable=variable(plugin, each.name),
                value=value,
            )
        )
    return found


def variable(plugin: str, key: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", f"{plugin}_{key}".upper())


def check_declared(plugin: str, declared: object) -> type:
    """What a plugin gave as its settings, if it is a dataclass that can be read from text.

    Raises `SettingsError`.
    """
    if not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
        raise SettingsError(f"plugin {plugin}: whip_settings gave {declared!r}, not a dataclass")
    _readers(plugin, declared)
    return declared


# Reading text as the types that a field may have


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{text[:80]!r} is neither true nor false")


def _number(of: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return of(text)
        except ValueError:
            kind = "whole number" if of is int else "number"
            raise ValueError(f"{text[:80]!r} is not a {kind}") from None

    return read


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    bool: _boolean,
    int: _number(int),
    float: _number(float),
    Path: lambda text: Path(text).expanduser(),
    tuple[str, ...]: _words,
}


def _readers(
    plugin: str, declared: type
) -> list[tuple[dataclasses.Field[Any], Callable[[str], Any]]]:
    try:
        hints = typing.get_type_hints(declared)
    except Exception as error:  # names in somebody else's annotations
        raise SettingsError(f"plugin {plugin}: its settings' types: {error}") from error
    found = []
    for each in _fields(declared):
        read = READERS.get(_without_none(hints[each.name]))
        if read is None:
            known = ", ".join(_type_name(kind) for kind in READERS)
            raise SettingsError(
                f"plugin {plugin}: its setting {each.name} is a {_type_name(hints[each.name])}, "
                f"which cannot be read from text; use one of {known}"
            )
        found.append((each, read))
    return found


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        [*rest] = (each for each in typing.get_args(hint) if each is not type(None))
        if len(rest) == 1:
            return rest[0]
    return hint


def _fields(declared: type | None) -> list[dataclasses.Field[Any]]:
    if declared is None:
        return []
    return [each for each in dataclasses.fields(declared) if each.init]


def _has_no_default(each: dataclasses.Field[Any]) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ""
