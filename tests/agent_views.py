"""Agents as pickers and policies see them, without a broker behind."""

from __future__ import annotations

from typing import Any

from whip_core.agents import AgentView
from whip_core.names import AgentName

_ANY = AgentView(
    name=AgentName("instance1", "testdom"),
    ports=(80,),
    labels={},
    session_id="",
    instance_id="",
    address=("192.0.2.1", 50000),
    certificate_names=(),
    protocol_version=1,
    software_version="1",
    streams=0,
    parked=1,
    round_trip=None,
    registered_at=0.0,
    draining=False,
)


def view(hostname: str = "instance1", **changes: Any) -> AgentView:
    """An agent of testdom."""
    name = AgentName.parse(hostname, changes.pop("domain", "testdom"))
    return _ANY._replace(name=name, session_id=f"session of {name}", **changes)


def views(count: int, **changes: Any) -> list[AgentView]:
    return [view(f"instance{number}", **changes) for number in range(count)]
