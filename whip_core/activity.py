"""What a broker's agents have done lately: a plugin that remembers a little of everything.

For people who look, not for alerts: metrics count, this tells the last few by name.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whip_core.agents import AgentView, DialFinished, StreamClosed
from whip_core.hookspecs import hookimpl
from whip_core.names import Target, printable

ROUND_TRIPS = 30
"""Per agent: ten minutes of pings, and as much as a sparkline shows."""
EVENTS = 200
"""Of each kind: what somebody scrolls through; a flood of one kind pushes out no other."""
TEXT = 500
"""Characters of an event's text: whole errors of ours, and an end for what peers say."""
KINDS = ("joined", "left", "dial", "failure")


@dataclass(slots=True)
class _Agent:
    round_trips: array[float] = field(default_factory=lambda: array("f"))
    to_agent: int = 0
    from_agent: int = 0


class _Dial(NamedTuple):
    """What is kept of a dial. It is put into words when somebody asks: most dials nobody does.

    Nothing of the request is kept, which may hold secrets, and no error, which holds frames.
    """

    dial_id: str
    target: Target
    port: int | None
    caller_address: tuple[str, int] | None
    proxy_user: str | None
    parked: bool
    seconds: float
    reason: str = ""
    error: str = ""
    relayed_by: str = ""
    relayed_for: str = ""

    def as_dict(self) -> dict[str, Any]:
        address = self.caller_address[0] if self.caller_address else None
        user = printable(self.proxy_user, 80) if self.proxy_user else None
        return {
            "dial": self.dial_id[:8],
            "target": str(self.target),
            "port": self.port,
            "caller": f"{user} from {address}" if user and address else user or address,
            "parked": self.parked,
            "ms": round(self.seconds * 1000, 2),
            **({"relayed_by": self.relayed_by} if self.relayed_by else {}),
            **({"relayed_for": self.relayed_for} if self.relayed_for else {}),
            **({"reason": self.reason, "error": self.error} if self.reason else {}),
        }


class Event(NamedTuple):
    """Something that happened. `number` grows by one with each; `at` is wall-clock seconds."""

    number: int
    at: float
    kind: str
    agent: str | None
    facts: Mapping[str, str] | _Dial

    def as_dict(self) -> dict[str, Any]:
        facts = self.facts.as_dict() if isinstance(self.facts, _Dial) else self.facts
        return {
            "number": self.number,
            "at": round(self.at, 3),
            "kind": self.kind,
            "agent": self.agent,
            **facts,
        }


class Activity:
    """By the agents' full names: what is told of a name begins anew when it registers anew."""

    whip_name = "activity"

    def __init__(self) -> None:
        self._agents: dict[str, _Agent] = {}
        self._events: dict[str, deque[Event]] = {kind: deque(maxlen=EVENTS) for kind in KINDS}
        self._numbers = itertools.count(1)
        self.latest = 0
        """The number of the last event."""

    def round_trips(self, name: str) -> tuple[float, ...]:
        """Seconds, the latest last."""
        agent = self._agents.get(name)
        return tuple(agent.round_trips) if agent else ()

    def finished_bytes(self, name: str) -> tuple[int, int]:
        """To and from the agent, in streams that have ended."""
        agent = self._agents.get(name)
        return (agent.to_agent, agent.from_agent) if agent else (0, 0)

    def events(
        self, kinds: Iterable[str] = KINDS, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Those with a number over `after`, oldest first; of each kind the last `limit`."""
        found: list[Event] = []
        for kind in kinds:
            recent = itertools.takewhile(
                lambda event: event.number > after, reversed(self._events[kind])
            )
            found += itertools.islice(recent, limit)
        return sorted(found, key=lambda event: event.number)

    def _note(self, kind: str, agent: str | None, facts: Mapping[str, str] | _Dial) -> None:
        self.latest = next(self._numbers)
        self._events[kind].append(Event(self.latest, time.time(), kind, agent, facts))

    @hookimpl
    def whip_agent_joined(self, agent: AgentView) -> None:
        self._agents[agent.name.full] = _Agent()
        self._note("joined", agent.name.full, {"address": agent.address[0]})

    @hookimpl
    def whip_agent_left(self, agent: AgentView, reason: str) -> None:
        self._agents.pop(agent.name.full, None)
        self._note("left", agent.name.full, {"reason": printable(reason, TEXT)})

    @hookimpl
    def whip_round_trip(self, agent: AgentView, seconds: float) -> None:
        if (known := self._agents.get(agent.name.full)) is not None:
            known.round_trips.append(seconds)
            del known.round_trips[:-ROUND_TRIPS]

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        error, caller = dial.error, dial.caller
        facts = _Dial(
            dial.dial_id,
            dial.target,
            dial.port,
            caller.address,
            caller.proxy_user,
            dial.parked,
            dial.total_seconds,
            error.reason if error is not None else "",
            printable(str(error), TEXT) if error is not None else "",
            dial.relayed_by,
            dial.relayed_for,
        )
        name = dial.agent.name.full if dial.agent is not None else None
        self._note("dial" if error is None else "failure", name, facts)

    @hookimpl
    def whip_stream_closed(self, stream: StreamClosed) -> None:
        if (known := self._agents.get(stream.agent.full)) is not None:
            known.to_agent += stream.bytes_to_agent
            known.from_agent += stream.bytes_from_agent
