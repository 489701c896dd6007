"""What brokers say to each other over a fabric, without I/O: JSON in an envelope.

    {"v": 1, "cluster": "…", "from": "broker id", "id": "…", "at": 1700000000.0, "kind": "…", …}

- seek, to whoever holds a name or domain: who is that? Answered by offers: agents.
- visit, to the broker that offered one: have that agent connect to me. Answered by visiting,
  or by refused with an error's code.
- allow, to the same: may this caller use the connection that the agent has parked here?
  Answered by allowed, or refused.
- relay, to the same: that agent cannot connect to me, may I have a stream by way of you?
  Answered by relaying, a pass (`relaying`), or refused.
- failed, to the broker that asked for a visit: it could not connect to you. No answer. With
  a pass, if both brokers relay.
- hello, to holders of one's own id: is somebody there? Answered by hello.

A `Gate` lets in only messages of our cluster, that are whole, fresh and new.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whip_core import json_fields
from whip_core.errors import RemoteProtocolError
from whip_core.names import Target

VERSION = 1
MAX_AGE = 10.0
"""Seconds between a message's sending and its arrival: longer than any question is waited
for. Brokers' clocks have to agree to within it."""
MAX_REMEMBERED = 100_000
"""Ids of messages that are remembered for as long as they would be fresh: ten thousand a
second, far beyond what one broker handles."""


class Unwelcome(Exception):
    """A message that is dropped; `reason` is its short name, for metrics and logs."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """What is in an envelope. `sender` is a broker's id."""

    sender: str
    kind: str
    body: dict[str, Any]


class Gate:
    """One broker's: `seal` makes messages, `admit` takes others' in."""

    def __init__(self, cluster: str, broker_id: str) -> None:
        self._cluster = cluster
        self._broker_id = broker_id
        self._seen: set[str] = set()
        self._order: deque[tuple[float, str]] = deque()

    def seal(self, kind: str, now: float, **body: Any) -> bytes:
        """`now` is the wall clock, in seconds."""
        envelope = {
            "v": VERSION,
            "cluster": self._cluster,
            "from": self._broker_id,
            "id": secrets.token_hex(8),
            "at": now,
            "kind": kind,
        }
        return json.dumps(envelope | body, separators=(",", ":")).encode()

    def admit(self, data: bytes, now: float) -> Message:
        """Raises `Unwelcome` for what has to be dropped."""
        try:
            told = json_fields.parsed(data, "it")
            if told.get("v") != VERSION:
                raise RemoteProtocolError(f"it is not a message of version {VERSION}")
            sender, kind, message_id = (
                json_fields.text(told.get(key), f"its {key!r}") for key in ("from", "kind", "id")
            )
            at = json_fields.number(told.get("at"), "when it was sent")
        except RemoteProtocolError as error:
            raise Unwelcome("malformed", str(error)) from error
        if told.get("cluster") != self._cluster:
            raise Unwelcome("other-cluster", f"it is of the cluster {told.get('cluster')!r:.60}")
        if not abs(now - at) <= MAX_AGE:
            raise Unwelcome("late", f"it was sent {now - at:.1f} s ago, by the sender's clock")
        self._forget(now)
        key = f"{sender} {message_id}"
        if key in self._seen:
            raise Unwelcome("replayed", "it came before")
        self._seen.add(key)
        self._order.append((now, key))
        return Message(sender, kind, told)

    def _forget(self, now: float) -> None:
        while self._order and (
            self._order[0][0] < now - 2 * MAX_AGE or len(self._order) >= MAX_REMEMBERED
        ):
            self._seen.discard(self._order.popleft()[1])


# Keys: whoever holds one is asked what is sent to it.


def agent_key(name: str) -> str:
    """Held by the brokers that an agent is registered at, by its full name."""
    return f"agent.{name}"


def domain_key(domain: str) -> str:
    """Held by the brokers that have agents of the domain; one of them is asked."""
    return f"domain.{domain}"


def broker_key(broker_id: str) -> str:
    return f"broker.{broker_id}"


# Reading bodies


def text(body: dict[str, Any], key: str) -> str:
    return json_fields.line(body.get(key), repr(key))


def number(body: dict[str, Any], key: str) -> int:
    """A port, or as small as one."""
    return json_fields.whole_number(body.get(key), repr(key), 65535)


def mapping(body: dict[str, Any], key: str) -> Mapping[str, Any]:
    return json_fields.mapping(body.get(key), repr(key))


def encode_target(target: Target) -> list[Any]:
    return [target.name, target.port]


def target_in(body: dict[str, Any]) -> Target:
    """Raises `ValueError` for a name or port that cannot be one."""
    value = body.get("target")
    if not (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    ):
        raise RemoteProtocolError("'target' is not a name and port")
    return Target.parse(value[0], value[1])
