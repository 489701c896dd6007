"""One dial under way: what is known of it so far, and its question to an agent.

`dialer` takes it from step to step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from whip_core.agents import AgentView, Destination, DialFinished, FailedAttempt
from whip_core.caller import Caller
from whip_core.candidates import Candidate, Candidates
from whip_core.errors import AgentGone, DialError
from whip_core.framed import FramedConnection
from whip_core.names import Target
from whip_core.session import Session
from whip_core.stream import Stream


class MayReturn(AgentGone):
    """The broker that holds the agent cannot be asked, or has just lost it: a dial that waits for
    agents waits for this one."""


@dataclass(slots=True)
class Dial:
    """One dial under way, and what is known of it so far. Times are seconds."""

    dial_id: bytes
    target: Target
    caller: Caller
    started: float
    asked: Target | None = None
    """What plugins made of the target."""
    candidates: Candidates[Session] | None = None
    candidate: Candidate[Session] | None = None
    resolve_seconds: float = 0.0
    pick_seconds: float = 0.0
    open_seconds: float | None = None
    parked: bool = False
    outcome: DialFinished | None = None
    """What plugins are told once it is open."""
    failed: list[FailedAttempt] = field(default_factory=list)
    relayed_by: str = ""
    """As in `DialFinished`; the session that opens the stream says it."""
    relayed_for: str = ""

    def __str__(self) -> str:
        asked_by = f" (request {self.caller.request_id})" if self.caller.request_id else ""
        return f"dial {self.dial_id.hex()[:8]} {self.target}{asked_by}"

    @property
    def destination(self) -> Destination:
        """Where it led, once it is open."""
        assert self.asked is not None
        assert self.candidate is not None
        return Destination(self.asked, self.candidate.session.name)

    @property
    def agent(self) -> AgentView:
        """The agent that it led to, as it is by now."""
        assert self.candidate is not None
        return self.candidate.session.view()

    @property
    def agent_leaves(self) -> bool:
        """Whether its agent takes no more dials, and waits for its streams to end."""
        return self.candidate is not None and self.candidate.session.draining

    def finished(self, error: DialError | None) -> DialFinished:
        return DialFinished(
            dial_id=self.dial_id.hex(),
            target=self.target,
            caller=self.caller,
            agent=self.candidate.session.view() if self.candidate else None,
            port=self.candidate.port if self.candidate else None,
            error=error,
            parked=self.parked,
            resolve_seconds=self.resolve_seconds,
            open_seconds=self.open_seconds,
            total_seconds=time.monotonic() - self.started,
            failed=tuple(self.failed),
            pick_seconds=self.pick_seconds,
            relayed_by=self.relayed_by,
            relayed_for=self.relayed_for,
        )


Tell = Callable[[Stream | Coroutine[Any, Any, Stream]], None]
"""Takes a dial's stream, or what has to be awaited for it, which raises `DialError`."""


Answer = Stream | DialError | TimeoutError | None
"""What came of asking an agent at once; None: it was cancelled."""


class Asked:
    """A dial whose agent has been asked on a parked connection, until it answers.

    `framed.Opening` is one side of it, `forward.Dialled` the other.
    """

    __slots__ = ("_answered", "asked_at", "connection", "dial", "tell", "wait")

    def __init__(
        self, dial: Dial, wait: float, tell: Tell, answered: Callable[[Asked, Answer], None]
    ) -> None:
        self.dial = dial
        self.wait = wait
        self.tell = tell
        self.asked_at = time.monotonic()
        self.connection: FramedConnection | None = None
        self._answered = answered

    def done(self) -> bool:
        return False  # who gives up says so to the connection

    def set_result(self, stream: Stream) -> None:
        self._answered(self, stream)

    def set_exception(self, error: DialError) -> None:
        self._answered(self, error)

    def too_late(self) -> None:
        """It has taken so long that the connection's path may be dead."""
        self._give_up()
        self._answered(self, TimeoutError())

    def cancel(self) -> None:
        """Leave nothing behind, and tell nobody."""
        self._give_up()
        self._answered(self, None)

    def _give_up(self) -> None:
        assert self.connection is not None
        self.connection.give_up(self)
