"""Plugins as one broker, or one agent, has them: checked when registered, each asked by name.

pluggy finds the hooks and keeps their order. They are called here and not by pluggy, so
that an error, a slow answer or a wrong one is known by the plugin it came from.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from whip_core import hookspecs
from whip_core.errors import SettingsError, WhipError
from whip_core.plugin_settings import Declared, PluginSettings, check_declared, describe

logger = logging.getLogger(__name__)

SLOW = 0.1
"""Seconds in a hook after which it is named in a warning: nothing else runs meanwhile."""
SLOW_AGAIN = 60.0
"""Seconds until the same hook of the same plugin is named again."""

MAY_BE_ASYNC = frozenset({"whip_authorize_agent", "whip_authorize_dial"})


class PluginFailed(WhipError):
    """A plugin raised, or gave what its hook does not allow; the text names both."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a plugin comes from: "built-in", "entry point", "module", "file" or "object"."""

    kind: str
    place: str = ""
    """The path, the module, or what the entry point names."""
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        if self.kind == "built-in":
            return self.kind
        if self.distribution:
            return f"{self.distribution} {self.version} ({self.kind} {self.place})"
        return f"{self.kind} {self.place}".strip()


@dataclass(frozen=True, slots=True)
class NamedPlugin:
    """A plugin, the name that settings and messages call it by, and where it comes from."""

    plugin: object
    name: str
    origin: Origin

    @classmethod
    def of(cls, plugin: object) -> NamedPlugin:
        """For an object: its `whip_name`, else the name of its class, or a module's own."""
        if isinstance(plugin, NamedPlugin):
            return plugin
        module = plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__
        name = getattr(plugin, "whip_name", None) or getattr(plugin, "__name__", None)
        kind = "built-in" if module.partition(".")[0] == __name__.partition(".")[0] else "object"
        return cls(plugin, str(name or type(plugin).__name__), Origin(kind, module))


@dataclass(frozen=True, slots=True)
class Described:
    """A registered plugin, for whoever lists them."""

    name: str
    origin: Origin
    hooks: tuple[str, ...]
    settings: tuple[Declared, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One hook of one plugin, and the arguments that it `takes`."""

    plugin: str
    hook: str
    function: Callable[..., Any]
    owner: object
    takes: tuple[str, ...]
    places: tuple[int, ...]
    """Where these are among the hook's arguments."""
    takes_all: bool

    def __call__(self, arguments: Sequence[Any]) -> Any:
        return self.function(*[arguments[place] for place in self.places])


class PluginHost:
    """The plugins of one broker or agent: nothing here is global.

    `asks` are the hooks that it asks, `asker` is what it is ("a broker").
    """

    def __init__(self, asks: frozenset[str], asker: str) -> None:
        self._asks = asks
        self._asker = asker
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: list[NamedPlugin] = []
        self._calls: dict[str, tuple[Call, ...]] = dict.fromkeys(hookspecs.HOOKS, ())
        self._declared: dict[str, type] = {}
        self._filled: dict[str, object] = {}
        self._quiet_until: dict[tuple[str, str], float] = {}
        self._started = False

    # Before anything listens

    def register(self, plugin: object) -> None:
        """An object with hooks, or a `NamedPlugin`.

        Raises `SettingsError`, one line, naming plugin, hook and argument.
        """
        named = NamedPlugin.of(plugin)
        self._check_hooks(named)
        self._check_twice(named)
        try:
            self._manager.register(named.plugin, f"{len(self._plugins)} {named.name}")
        except (pluggy.PluginValidationError, ValueError) as error:
            raise SettingsError(f"plugin {named.name}: {' '.join(str(error).split())}") from error
        self._plugins.append(named)
        self._calls = {hook: self._calls_of(hook) for hook in hookspecs.HOOKS}

    def configure(self, settings: PluginSettings) -> None:
        """Read the settings of all plugins, without telling them yet. Raises `SettingsError`."""
        for call in self._calls["whip_settings"]:
            declared = check_declared(call.plugin, self._prepare(call))
            self._declared[call.plugin] = declared
        names = {named.name: self._declared.get(named.name) for named in self._plugins}
        for unknown in settings.check_known(names):
            logger.debug("%s is the setting of no plugin here", unknown)
        for name, declared in self._declared.items():
            self._filled[name] = settings.fill(name, declared)

    def start(self, registry: object) -> None:
        """Tell plugins their settings, and where their metrics go. Once; then never again.

        Raises `SettingsError` if one of them fails at it.
        """
        if self._started:
            return
        self._started = True
        for call in self._calls["whip_configure"]:
            self._prepare(call, self._filled.get(call.plugin))
        for call in self._calls["whip_metrics"]:
            self._prepare(call, registry)

    def describe(self) -> list[Described]:
        """All plugins, in the order of their registration."""
        return [
            Described(
                name=named.name,
                origin=named.origin,
                hooks=tuple(sorted({hook for hook, _, _ in self._hooks_of(named)})),
                settings=tuple(
                    describe(named.name, self._declared[named.name], self._filled.get(named.name))
                    if named.name in self._declared
                    else ()
                ),
            )
            for named in self._plugins
        ]

    def gather(self, hook: str) -> list[tuple[str, Any]]:
        """What each plugin answers, and its name. Raises `SettingsError` if one fails."""
        return [(call.plugin, self._prepare(call)) for call in self._calls[hook]]

    # While it runs

    # Arguments come in the order that the hook is specified with. Every dial comes through
    # here several times, with all plugins: what costs a call of its own stands in the loop.

    def first_result(self, hook: str, *arguments: Any) -> tuple[str, Any] | None:
        """The first answer that is not None, and whose it is. Raises `PluginFailed`."""
        clock = time.perf_counter
        began = clock()
        for call in self._calls[hook]:
            try:
                answer = call.function(*arguments) if call.takes_all else call(arguments)
            except Exception as error:
                logger.exception("plugin %s: %s failed", call.plugin, hook)
                raise PluginFailed(f"plugin {call.plugin}: {hook} failed: {error!r}") from error
            now = clock()
            if now - began > SLOW:
                self._was_slow(call, now - began)
            if answer is not None:
                _check_is_there(call, answer)
                return call.plugin, answer
            began = now
        return None

    def calls(self, hook: str) -> tuple[Call, ...]:
        """Who is asked, in order."""
        return self._calls[hook]

    def answer(self, call: Call, *arguments: Any) -> Any:
        """What one of them answers. Raises `PluginFailed`."""
        began = time.perf_counter()
        try:
            answer = call(arguments)
        except Exception as error:
            logger.exception("plugin %s: %s failed", call.plugin, call.hook)
            raise PluginFailed(f"plugin {call.plugin}: {call.hook} failed: {error!r}") from error
        if (seconds := time.perf_counter() - began) > SLOW:
            self._was_slow(call, seconds)
        if answer is not None:
            _check_is_there(call, answer)
        return answer

    async def first_reason(self, hook: str, *arguments: Any) -> str | None:
        """The first reason against it. All are asked; one that raises has allowed nothing."""
        clock = time.perf_counter
        reason: str | None = None
        for call in self._calls[hook]:
            began = clock()
            try:
                verdict = call.function(*arguments) if call.takes_all else call(arguments)
                if (seconds := clock() - began) > SLOW:
                    self._was_slow(call, seconds)
                if verdict is not None and inspect.isawaitable(verdict):
                    verdict = await verdict
            except Exception:
                logger.exception("plugin %s: %s failed", call.plugin, hook)
                verdict = f"plugin {call.plugin} failed"
            if verdict is not None and reason is None:
                reason = str(verdict) or "no reason given"
        return reason

    def notify(self, hook: str, *arguments: Any) -> None:
        """Tell every plugin, each for itself: one that raises is logged and passed over."""
        clock = time.perf_counter
        began = clock()
        for call in self._calls[hook]:
            try:
                call.function(*arguments) if call.takes_all else call(arguments)
            except Exception:
                logger.exception("plugin %s: %s failed", call.plugin, hook)
            now = clock()
            if now - began > SLOW:
                self._was_slow(call, now - began)
            began = now

    def _prepare(self, call: Call, *arguments: Any) -> Any:
        try:
            return call(arguments)
        except Exception as error:  # it is somebody else's code that runs here
            what = str(error) if isinstance(error, WhipError) else repr(error)
            raise SettingsError(f"plugin {call.plugin}: {call.hook} failed: {what}") from error

    def _was_slow(self, call: Call, seconds: float) -> None:
        now = time.monotonic()
        named = (call.plugin, call.hook)  # the plugin itself may not be hashable
        if now < self._quiet_until.get(named, 0.0):
            return
        self._quiet_until[named] = now + SLOW_AGAIN
        logger.warning(
            "plugin %s: %s took %.0f ms and blocked everything else (logged at most once in %g s)",
            call.plugin,
            call.hook,
            seconds * 1000,
            SLOW_AGAIN,
        )

    # What a plugin has

    def _calls_of(self, hook: str) -> tuple[Call, ...]:
        names = {id(named.plugin): named.name for named in self._plugins}
        arguments = hookspecs.HOOKS[hook]
        return tuple(
            Call(
                names[id(implementation.plugin)],
                hook,
                implementation.function,
                implementation.plugin,
                takes=tuple(implementation.argnames),
                places=tuple(arguments.index(name) for name in implementation.argnames),
                takes_all=tuple(implementation.argnames) == arguments,
            )
            for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls())
        )

    def _hooks_of(self, named: NamedPlugin) -> list[tuple[str, str, Any]]:
        """Each hook, the attribute behind it, and the options that it was marked with."""
        found = []
        for attribute in dir(named.plugin):
            options = self._manager.parse_hookimpl_opts(named.plugin, attribute)
            if options is not None:
                found.append((options.get("specname") or attribute, attribute, options))
        return found

    def _check_hooks(self, named: NamedPlugin) -> None:
        wrong = f"plugin {named.name}"
        if inspect.isclass(named.plugin):
            raise SettingsError(f"{wrong} is a class: register an instance of it")
        hooks = {hook for hook, _, _ in self._hooks_of(named)}
        for hook, attribute, options in self._hooks_of(named):
            if hook not in hookspecs.HOOKS:
                if options.get("optionalhook"):
                    continue
                close = difflib.get_close_matches(hook, hookspecs.HOOKS, n=1)
                hint = f": did you mean {close[0]}?" if close else ""
                raise SettingsError(f"{wrong}: there is no hook {hook}{hint}")
            if options.get("wrapper") or options.get("hookwrapper"):
                raise SettingsError(f"{wrong}: {hook} cannot be a wrapper")
            function = getattr(named.plugin, attribute)
            if _is_async(function) and hook not in MAY_BE_ASYNC:
                raise SettingsError(
                    f"{wrong}: {hook} is asked synchronously, so it cannot be an async def"
                )
            if inspect.isgeneratorfunction(function):
                raise SettingsError(f"{wrong}: {hook} cannot be a generator")
            _check_arguments(f"{wrong}: {hook}", hookspecs.HOOKS[hook], function)
        if not hooks:
            raise SettingsError(f"{wrong} has no hooks{_unmarked(named.plugin)}")
        if self._asks.isdisjoint(hooks):
            raise SettingsError(f"{wrong}: {self._asker} asks none of {', '.join(sorted(hooks))}")
        if ("whip_settings" in hooks) != ("whip_configure" in hooks):
            raise SettingsError(f"{wrong}: whip_settings and whip_configure go together")

    def _check_twice(self, named: NamedPlugin) -> None:
        for other in self._plugins:
            loaded = named.origin.kind not in ("object", "built-in")
            if other.plugin is named.plugin or (loaded and other.name == named.name):
                raise SettingsError(
                    f"plugin {named.name} is loaded twice: {other.origin}, and {named.origin}"
                )


def _check_is_there(call: Call, answer: Any) -> None:
    """Raises `PluginFailed` for an answer that is still to come."""
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()  # nobody is ever going to await it
        raise PluginFailed(
            f"plugin {call.plugin}: {call.hook} returned an awaitable, but this hook is synchronous"
        )


def _check_arguments(where: str, arguments: Iterable[str], function: Callable[..., Any]) -> None:
    """Raises `SettingsError` for a parameter that will never be given what it is named for."""
    known = tuple(arguments)
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise SettingsError(f"{where} takes *{name}, and is given arguments by their names")
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "it has none"
            raise SettingsError(f"{where} has no argument {name}: {there_are}")
        if parameter.default is not parameter.empty or parameter.kind is parameter.KEYWORD_ONLY:
            raise SettingsError(
                f"{where}: {name} would never be given: write it without a default, before any *"
            )


def _unmarked(plugin: object) -> str:
    names = [name for name in hookspecs.HOOKS if callable(getattr(plugin, name, None))]
    return f": mark {', '.join(names)} with @hookimpl" if names else ""


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
