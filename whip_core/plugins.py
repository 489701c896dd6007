"""A broker's plugin manager, and how its hooks are asked: who may veto, who may not hurt."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import pluggy

from whip_core import hookspecs
from whip_core.agents import AgentView, DialFinished, Peer, Registration, StreamClosed
from whip_core.caller import Caller
from whip_core.errors import DialError, SettingsError
from whip_core.fabric import Fabric
from whip_core.names import Target
from whip_core.settings import FabricSettings

logger = logging.getLogger(__name__)

MAY_BE_ASYNC = frozenset({"whip_authorize_agent", "whip_authorize_dial"})


class Plugins:
    """What one broker asks. Nothing here is global: two brokers share no plugin state."""

    def __init__(self, plugins: Iterable[object] = ()) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for plugin in plugins:
            self.register(plugin)

    def register(self, plugin: object) -> None:
        """Raises `SettingsError` naming plugin and hook if a hook is unknown or ill-formed."""
        name = _name_of(plugin)
        try:
            registered = self._manager.register(plugin)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise SettingsError(f"plugin {name}: {error}") from error
        assert registered is not None
        for caller in self._manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    _check(name, caller.name, implementation)

    def resolve(self, target: Target, caller: Caller) -> Target:
        """Another target, or the same one. Raises `DialError` if a plugin fails."""
        answer = self._ask("whip_resolve", target=target, caller=caller)
        if answer is None:
            return target
        if not isinstance(answer, Target):
            raise DialError(
                f"{target}: a plugin's whip_resolve gave {answer!r}, which is no Target"
            )
        try:
            return Target.parse(answer.name, answer.port)
        except ValueError as error:
            raise DialError(f"{target}: a plugin's whip_resolve: {error}") from error

    def pick(
        self, target: Target, candidates: Sequence[AgentView], caller: Caller
    ) -> AgentView | None:
        """One of the candidates. Raises `DialError` if a plugin fails."""
        picked: AgentView | None = self._ask(
            "whip_pick", target=target, candidates=candidates, caller=caller
        )
        return picked

    async def veto_of_agent(self, registration: Registration, peer: Peer) -> str | None:
        """The first reason against the registration, or None. All are asked."""
        return await self._first_reason(
            "whip_authorize_agent", registration=registration, peer=peer
        )

    async def veto_of_dial(self, target: Target, agent: AgentView, caller: Caller) -> str | None:
        """The first reason against the dial, or None. All are asked."""
        return await self._first_reason(
            "whip_authorize_dial", target=target, agent=agent, caller=caller
        )

    @property
    def judge_dials(self) -> bool:
        """Whether any plugin has a say in who may dial."""
        return bool(self._manager.hook.whip_authorize_dial.get_hookimpls())

    def fabric(self, settings: FabricSettings) -> Fabric:
        """What the first plugin makes of the settings; `SettingsError` if none knows how."""
        made: Fabric | None = self._manager.hook.whip_fabric(settings=settings)
        if made is None:
            raise SettingsError(
                f"--fabric {settings.url!r}: no plugin makes such a fabric; "
                "write nats://host:4222 or tls://host:4222"
            )
        return made

    def agent_joined(self, agent: AgentView) -> None:
        self._notify("whip_agent_joined", agent=agent)

    def agent_left(self, agent: AgentView, reason: str) -> None:
        self._notify("whip_agent_left", agent=agent, reason=reason)

    def round_trip(self, agent: AgentView, seconds: float) -> None:
        self._notify("whip_round_trip", agent=agent, seconds=seconds)

    def dial_finished(self, dial: DialFinished) -> None:
        self._notify("whip_dial_finished", dial=dial)

    def stream_opened(self, dial: DialFinished) -> None:
        self._notify("whip_stream_opened", dial=dial)

    def stream_closed(self, stream: StreamClosed) -> None:
        self._notify("whip_stream_closed", stream=stream)

    def _ask(self, hook: str, **arguments: Any) -> Any:
        """The first result. Without the answer of a plugin that raises there is no dial."""
        try:
            return getattr(self._manager.hook, hook)(**arguments)
        except Exception as error:
            logger.exception("a plugin's %s failed", hook)
            raise DialError(
                f"{arguments['target']}: a plugin's {hook} failed: {error!r}"
            ) from error

    async def _first_reason(self, hook: str, **arguments: Any) -> str | None:
        """All are asked, each for itself; one that raises has allowed nothing."""
        reason: str | None = None
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            values = [arguments[name] for name in implementation.argnames]
            try:
                verdict = implementation.function(*values)
                if inspect.isawaitable(verdict):
                    verdict = await verdict
            except Exception:
                name = _name_of(implementation.plugin)
                logger.exception("plugin %s: %s failed", name, hook)
                verdict = f"plugin {name} failed"
            if verdict is not None and reason is None:
                reason = str(verdict) or "no reason given"
        return reason

    def _notify(self, hook: str, **arguments: Any) -> None:
        """Tell every plugin, each for itself: one that raises is logged and passed over."""
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            values = [arguments[name] for name in implementation.argnames]
            try:
                implementation.function(*values)
            except Exception:
                logger.exception("plugin %s: %s failed", _name_of(implementation.plugin), hook)


def _check(name: str, hook: str, implementation: pluggy.HookImpl) -> None:
    """Raises `SettingsError` for what pluggy lets pass and the hooks here are not made for."""
    if inspect.iscoroutinefunction(implementation.function) and hook not in MAY_BE_ASYNC:
        raise SettingsError(
            f"plugin {name}: {hook} is asked synchronously, so it cannot be an async def"
        )
    if implementation.wrapper or implementation.hookwrapper:
        raise SettingsError(f"plugin {name}: {hook} cannot be a wrapper")


def _name_of(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__name__
