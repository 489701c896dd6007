"""What an agent's plugin sees of a dial to an exposed port, and what it may answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refused:
    """The dial fails; whoever dialled is told the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Redirected:
    """Another service is opened: "5051", "10.0.0.7:8443" or "unix:/path"."""

    service: str


LocalAnswer = Refused | Redirected


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """A broker asks for a stream to an exposed port of this agent."""

    dial_id: str
    """The dial's, as in the broker's log; hexadecimal, except from an old broker."""
    port: int
    """The exposed port."""
    service: str
    """What is opened unless a plugin says otherwise: "127.0.0.1:5051" or "unix:/path"."""
    broker_id: str | None
    """None for an old broker, which has none."""

    def refuse(self, reason: str) -> LocalAnswer:
        return Refused(reason)

    def redirect(self, service: str) -> LocalAnswer:
        return Redirected(service)
