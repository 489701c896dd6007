"""The hooks that a plugin may implement. Their docstrings are the reference.

A plugin is a module, a class instance or any object with functions marked `@hookimpl`:

    from whip_core import hookimpl

    @hookimpl
    def whip_pick(target, candidates, caller):
        return min(candidates, key=lambda agent: agent.streams)

An implementation takes the arguments it wants, by name. Every hook but two is synchronous:
what takes long in it holds everything up, and is named in a warning after 100 ms. A broker
asks them all but `whip_open_local`, which an agent asks, with those about starting.
`docs/plugins.md` has an example of each.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import pluggy

from whip_core.agents import (
    AgentView,
    DialFinished,
    Peer,
    Refusal,
    Registration,
    RequestFinished,
    StreamClosed,
)
from whip_core.caller import Caller
from whip_core.fabric import Fabric
from whip_core.local_request import LocalAnswer, LocalRequest
from whip_core.names import Target
from whip_core.settings import FabricSettings

PROJECT = "whip"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# Before anything listens. An exception here ends the start, in one line.


@hookspec
def whip_settings() -> type:
    """The dataclass whose fields are this plugin's settings.

    Fields are str, bool, int, float, Path, tuple[str, ...] (separated by commas) or one of
    these or None; one without a default has to be set. `metadata={"help": ...}` is shown by
    `whip plugins`, and a field with `repr=False` keeps its value to itself. A ValueError
    raised in `__post_init__` refuses the values.
    """
    raise NotImplementedError  # specified here, and never called


@hookspec
def whip_configure(settings: Any) -> None:
    """The settings, an instance of what `whip_settings` gave, once, before anything listens."""


@hookspec
def whip_metrics(registry: Any) -> None:
    """Register collectors in the `prometheus_client.CollectorRegistry` of this broker or agent.

    Asked once, after `whip_configure`. It is served at /metrics with whip's own.
    """


@hookspec
def whip_mitmproxy_addons() -> Sequence[object] | None:
    """Addons for the mitmproxy that this broker is in; asked when it has started.

    They get `load`, `configure` and `running` then, and `done` when whip's addon goes. A
    broker without mitmproxy never asks.
    """


@hookspec(firstresult=True)
def whip_fabric(settings: FabricSettings) -> Fabric | None:
    """What joins this broker to others; None leaves it to the next plugin.

    Asked once, when a broker with `settings.fabric` starts. Synchronous: connecting is
    `Fabric.open`'s. Raises `SettingsError` for settings it cannot use.
    """


# Decisions of a broker. An exception denies the dial, or the registration, that it is about.


@hookspec(firstresult=True)
def whip_resolve(target: Target, caller: Caller) -> Target | None:
    """Another target to resolve instead of `target`; None leaves it to the next plugin.

    Asked before the registry, once for each dial.
    """


@hookspec(firstresult=True)
def whip_pick(target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView | None:
    """One of `candidates` (two or more) to try next; None leaves it to the next plugin.

    Asked again, without the ones that failed, when a candidate cannot be opened.
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


# Events of a broker. An exception is logged with the plugin's name, and hurts nobody.


@hookspec
def whip_agent_joined(agent: AgentView) -> None:
    """An agent is registered."""


@hookspec
def whip_agent_left(agent: AgentView, reason: str) -> None:
    """An agent's session has ended. `agent` is as it was at that moment."""


@hookspec
def whip_name_taken_over(agent: AgentView, by: AgentView) -> None:
    """`by` has the name of `agent`, which did not answer a probe. Synchronous; logged."""


@hookspec
def whip_refused(refusal: Refusal) -> None:
    """A registration or a connection was refused. Synchronous; an exception is logged.

    Strangers can cause as many of these as they like: bound what you keep of them.
    """


@hookspec
def whip_round_trip(agent: AgentView, seconds: float) -> None:
    """A ping on an agent's control stream was answered."""


@hookspec
def whip_dial_finished(dial: DialFinished) -> None:
    """A dial succeeded or failed: `dial.error` says why, its `seconds` where the time went."""


@hookspec
def whip_response_seen(agent: AgentView, status: int) -> None:
    """mitmproxy has received the head of an HTTP response over a stream to `agent`.

    Synchronous; an exception is logged.
    """


@hookspec
def whip_stream_opened(dial: DialFinished) -> None:
    """A stream is open: `whip_stream_closed` with its `dial_id` follows, whatever happens."""


@hookspec
def whip_stream_closed(stream: StreamClosed) -> None:
    """A stream has ended: after how many bytes each way, and how."""


@hookspec
def whip_request_finished(request: RequestFinished) -> None:
    """A proxy has answered its client, or given up. A broker without a proxy never tells it."""


# On the agent. An exception refuses the dial that it is about.


@hookspec(firstresult=True)
def whip_open_local(request: LocalRequest) -> LocalAnswer | None:
    """Refuse or redirect a dial to an exposed port; None leaves it to the next plugin.

    `request.refuse(reason)` and `request.redirect(service)` make the answers. When no plugin
    answers, the service that the port was exposed with is opened.
    """


HOOKS: Mapping[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(found).parameters)
    for name, found in tuple(globals().items())
    if hasattr(found, f"{PROJECT}_spec")
}
"""Every hook's name, and the names of its arguments."""

AT_THE_START = frozenset({"whip_settings", "whip_configure", "whip_metrics"})
ASKED_BY_AGENTS = AT_THE_START | {"whip_open_local"}
ASKED_BY_BROKERS = frozenset(HOOKS) - {"whip_open_local"}
