"""What agent and broker say to each other on the control stream, as plain values.

DESIGN §4 has the wire forms; `control_wire` alone knows them. Times are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROTOCOL_VERSION = 1
"""What we announce. A peer that announces 0 (nothing) gets the old behaviour in full."""


@dataclass(frozen=True, slots=True)
class Register:
    """Agent: here I am. `held_brokers` are ids of brokers it has a live session with."""

    hostname: str
    domain: str
    ports: tuple[int, ...]
    protocol_version: int = 0
    instance_id: str = ""
    software_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    held_brokers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """Agent: the connection you asked for did not come about."""

    connection_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Pong:
    sequence: int
    ping_timestamp: int
    pong_timestamp: int


@dataclass(frozen=True, slots=True)
class Draining:
    """Either side: no new dials, please; what runs may finish."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """Broker: you are in. Only agents that announce a version are told."""

    protocol_version: int
    broker_id: str
    session_id: str
    secret: str
    reverse_host: str
    reverse_port: int
    software_version: str = ""
    cluster: str = ""
    """Names the fabric by which this broker reaches its neighbours' agents; empty: none."""


@dataclass(frozen=True, slots=True)
class AlreadyRegistered:
    """Broker: this agent holds a session with me by another address; keep that one."""

    broker_id: str


@dataclass(frozen=True, slots=True)
class Connect:
    """Broker: open a reverse connection to `host:port`, for your port `local_port`."""

    connection_id: str
    host: str
    port: int
    local_port: int


@dataclass(frozen=True, slots=True)
class Park:
    """Broker: keep this many idle reverse connections open to me."""

    connections: int


@dataclass(frozen=True, slots=True)
class Visit:
    """Broker: a neighbour of mine, that you have no control stream to, wants connections.

    Keep `connections` idle ones open to `reverse_host:reverse_port`, where they show the
    id and secret given here (0: no more), and open one for the dial `connection_id`, if
    there is one, for your port `local_port`.
    """

    broker_id: str
    session_id: str
    secret: str
    reverse_host: str
    reverse_port: int
    connections: int
    connection_id: str = ""
    local_port: int = 0


@dataclass(frozen=True, slots=True)
class Ping:
    sequence: int
    ping_timestamp: int


AgentMessage = Register | ConnectFailed | Pong | Draining
BrokerMessage = Registered | AlreadyRegistered | Connect | Park | Visit | Ping | Draining
