"""What plugins, pickers and views see of an agent and of the dials and streams to it.

What is made for each dial is a NamedTuple, at a quarter of a frozen dataclass's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from whip_core.caller import Caller
from whip_core.errors import DialError
from whip_core.names import AgentName, Target


class AgentView(NamedTuple):
    """A registered agent as it is at this moment. Times are seconds."""

    name: AgentName
    ports: tuple[int, ...]
    labels: Mapping[str, str]
    session_id: str
    instance_id: str
    address: tuple[str, int]
    """Where its control stream comes from."""
    certificate_names: tuple[str, ...]
    protocol_version: int
    software_version: str
    streams: int
    """Open streams, and those that are being opened."""
    parked: int
    round_trip: float | None
    registered_at: float
    """Wall clock, seconds since the epoch."""
    draining: bool
    ejected: bool = False
    """Left out of its domain for a while, because it keeps failing."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What an agent asks to be registered as."""

    name: AgentName
    ports: tuple[int, ...]
    labels: Mapping[str, str]
    instance_id: str
    protocol_version: int
    software_version: str


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What there is to know of a peer's certificate after its names."""

    issuer: str
    """The subject of the CA that issued it."""
    serial: int
    expires_at: float
    """Wall clock, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a connection comes from: its address, and the names its certificate proves.

    `certificate_names` is None on a plaintext connection, where nothing is proved.
    """

    address: tuple[str, int]
    certificate_names: tuple[str, ...] | None
    certificate: PeerCertificate | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Who was not let in. `what` is "agent" (a registration) or "connection".

    A dial that is refused is a `DialFinished` with its error.
    """

    what: str
    reason: str
    """Its short name, of a bounded set."""
    address: tuple[str, int]
    text: str
    name: str = ""
    """What an agent wanted to be registered as."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a dial leads, or has to lead: what was asked for after plugins resolved it.

    An `agent` of None is any agent of that target.
    """

    target: Target
    agent: AgentName | None

    def admits(self, reached: Destination) -> bool:
        """Whether a stream to `reached` will do for a caller that must get here."""
        return self.target == reached.target and self.agent in (None, reached.agent)


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An agent that was asked to open a stream, and did not."""

    agent: AgentView
    error: DialError


class DialFinished(NamedTuple):
    """How a dial went. `agent` and `open_seconds` are None if it never got so far."""

    dial_id: str
    target: Target
    caller: Caller
    agent: AgentView | None
    port: int | None
    """The exposed port that the port rule chose."""
    error: DialError | None
    parked: bool
    resolve_seconds: float
    open_seconds: float | None
    total_seconds: float
    failed: tuple[FailedAttempt, ...] = ()
    """The agents that were tried in vain; the last one too, if the dial failed by it."""
    pick_seconds: float = 0.0
    """What choosing the agent took, and asking whether it is allowed."""
    relayed_by: str = ""
    """The id of the broker that relays the stream, as the agent cannot reach this one."""
    relayed_for: str = ""
    """The id of the broker that dials, if this one relays the stream for it."""


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """One exchange of a proxy with its client. All three are of a bounded number."""

    status: int
    """The HTTP status that the client got; 0 if it got none, or it was not HTTP."""
    protocol: str
    """"HTTP/1.1" and the like, "websocket", "tcp" or "other"."""
    error: str
    """Why it failed, as a short name; empty if it did not."""


class StreamClosed(NamedTuple):
    """A stream's end. `cause` is "end", "reset" (by either side) or "cut"."""

    dial_id: str
    agent: AgentName
    port: int
    caller: Caller
    bytes_to_agent: int
    bytes_from_agent: int
    seconds: float
    cause: str
