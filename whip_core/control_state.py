"""The control stream's states, without I/O, as each end sees them.

The broker: an agent's first message is Register; then it answers pings and reports
failures; once it is draining it only finishes.

The agent: a broker of ours answers Register with Registered (or AlreadyRegistered, and
closes). A first message that is neither comes from an old broker, which never answers the
registration: that stream stays OLD, and reverse connections for it are raw.

A message that the state does not allow is a `RemoteProtocolError`.
"""

from __future__ import annotations

from enum import Enum

from whip_core import control
from whip_core.errors import RemoteProtocolError

MAX_PINGS_OUTSTANDING = 4
"""Unanswered pings that are remembered; an agent that owes more is as good as gone."""


class State(Enum):
    REGISTERING = "registering"
    REGISTERED = "registered"
    OLD = "registered at an old broker"
    DRAINING = "draining"
    ENDED = "ended"


_S = State

BROKER_SIDE: dict[State, dict[type, State]] = {
    _S.REGISTERING: {control.Register: _S.REGISTERED},
    _S.REGISTERED: {
        control.ConnectFailed: _S.REGISTERED,
        control.Pong: _S.REGISTERED,
        control.Draining: _S.DRAINING,
    },
    _S.DRAINING: {
        control.ConnectFailed: _S.DRAINING,
        control.Pong: _S.DRAINING,
        control.Draining: _S.DRAINING,
    },
    _S.ENDED: {},
}

AGENT_SIDE: dict[State, dict[type, State]] = {
    _S.REGISTERING: {
        control.Registered: _S.REGISTERED,
        control.AlreadyRegistered: _S.ENDED,
        control.Connect: _S.OLD,
        control.Ping: _S.OLD,
    },
    _S.OLD: {control.Connect: _S.OLD, control.Ping: _S.OLD},
    _S.REGISTERED: {
        control.Connect: _S.REGISTERED,
        control.Ping: _S.REGISTERED,
        control.Park: _S.REGISTERED,
        control.Visit: _S.REGISTERED,
        control.Draining: _S.DRAINING,
    },
    _S.DRAINING: {
        control.Connect: _S.DRAINING,
        control.Ping: _S.DRAINING,
        control.Park: _S.DRAINING,
        control.Visit: _S.DRAINING,
        control.Draining: _S.DRAINING,
    },
    _S.ENDED: {},
}


class ControlState:
    """One end's view of one control stream."""

    def __init__(self, table: dict[State, dict[type, State]]) -> None:
        self._table = table
        self.state = State.REGISTERING

    def receive(self, message: control.AgentMessage | control.BrokerMessage) -> None:
        """Step to the next state, or raise `RemoteProtocolError`."""
        try:
            self.state = self._table[self.state][type(message)]
        except KeyError:
            raise RemoteProtocolError(
                f"the peer sent {type(message).__name__} on a control stream "
                f"that is {self.state.value}"
            ) from None

    def end(self) -> None:
        self.state = State.ENDED


class RoundTrips:
    """Round trips of one agent, by the broker's monotonic clock (seconds)."""

    def __init__(self) -> None:
        self._sequence = 0
        self._sent: dict[int, float] = {}
        self.latest: float | None = None

    def ping(self, now: float, wall_clock: int) -> control.Ping:
        """The next ping; `wall_clock` (nanoseconds) is for the peer's eyes only."""
        self._sequence += 1
        self._sent[self._sequence] = now
        if len(self._sent) > MAX_PINGS_OUTSTANDING:
            del self._sent[next(iter(self._sent))]
        return control.Ping(self._sequence, wall_clock)

    def pong(self, pong: control.Pong, now: float) -> float | None:
        """The round trip that `pong` closes; None if it answers no ping (any more)."""
        sent = self._sent.pop(pong.sequence, None)
        if sent is None:
            return None
        self.latest = now - sent
        return self.latest
