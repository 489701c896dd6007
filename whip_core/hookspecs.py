"""The hooks that a plugin may implement. Their docstrings are the reference.

A plugin is a module, a class instance or any object with functions marked `@hookimpl`:

    from whip_core import hookimpl

    @hookimpl
    def whip_pick(target, candidates, caller):
        return min(candidates, key=lambda agent: agent.streams)

An implementation takes the arguments it wants, by name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import pluggy

from whip_core.agents import AgentView, DialFinished, Peer, Registration, StreamClosed
from whip_core.caller import Caller
from whip_core.fabric import Fabric
from whip_core.names import Target
from whip_core.settings import FabricSettings

PROJECT = "whip"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def whip_resolve(target: Target, caller: Caller) -> Target | None:
    """Another target to resolve instead of `target`; None leaves it to the next plugin.

    Asked before the registry, once for each dial. Synchronous.
    """


@hookspec(firstresult=True)
def whip_pick(target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView | None:
    """One of `candidates` (two or more) to try next; None leaves it to the next plugin.

    Asked again, without the ones that failed, when a candidate cannot be opened.
    Synchronous.
    """


@hookspec(firstresult=True)
def whip_fabric(settings: FabricSettings) -> Fabric | None:
    """What joins this broker to others; None leaves it to the next plugin.

    Asked once, when a broker with `settings.fabric` starts. Synchronous: connecting is
    `Fabric.open`'s. Raises `SettingsError` for settings it cannot use.
    """


@hookspec
def whip_authorize_agent(
    registration: Registration, peer: Peer
) -> str | Awaitable[str | None] | None:
    """A reason why this agent may not register, or None. All plugins are asked.

    May be a coroutine function.
    """


@hookspec
def whip_authorize_dial(
    target: Target, agent: AgentView, caller: Caller
) -> str | Awaitable[str | None] | None:
    """A reason why `caller` may not reach `agent`, or None. All plugins are asked.

    Asked before anything is opened. May be a coroutine function.
    """


@hookspec
def whip_agent_joined(agent: AgentView) -> None:
    """An agent is registered. Synchronous; an exception is logged and hurts nobody."""


@hookspec
def whip_agent_left(agent: AgentView, reason: str) -> None:
    """An agent's session has ended. Synchronous; an exception is logged."""


@hookspec
def whip_round_trip(agent: AgentView, seconds: float) -> None:
    """A ping was answered. Synchronous; an exception is logged."""


@hookspec
def whip_dial_finished(dial: DialFinished) -> None:
    """A dial succeeded or failed. Synchronous; an exception is logged."""


@hookspec
def whip_stream_opened(dial: DialFinished) -> None:
    """A stream is open: `whip_stream_closed` follows. Synchronous; an exception is logged."""


@hookspec
def whip_stream_closed(stream: StreamClosed) -> None:
    """A stream has ended, one way or another. Synchronous; an exception is logged."""
