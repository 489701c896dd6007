"""Who may serve a dial, and what a picker sees of them.

A domain may have ten thousand agents, and a dial wants one. So nothing here is made for
each of them on each dial: the sequence is kept between dials, it changes only when an
agent comes or goes, and what is asked of it is made when it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, overload

from whip_core.agents import AgentView
from whip_core.errors import PortNotExposed
from whip_core.names import DEFAULT_PORTS, AgentName, Target

PORTS_TOLD = 8
"""How many exposed ports an error message lists."""


class Member(Protocol):
    """What has to be known of a session."""

    @property
    def name(self) -> AgentName: ...
    @property
    def ports(self) -> tuple[int, ...]: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def draining(self) -> bool: ...
    @property
    def ejected(self) -> bool: ...
    def view(self) -> AgentView: ...


Session = TypeVar("Session", bound=Member)


@dataclass(frozen=True, slots=True)
class Candidate(Generic[Session]):
    """A session that may serve a dial, and the exposed port that it would be."""

    session: Session
    port: int


class Candidates(Generic[Session]):
    """The sessions that may serve a dial of one port, at least one. Never changes."""

    def __init__(self, sessions: Iterable[Session], asked_port: int) -> None:
        self._sessions = tuple(sessions)
        self._asked_port = asked_port
        self._first: Candidate[Session] | None = None
        self.views: Sequence[AgentView] = _Views(self._sessions)
        """What pickers are given: the same object for as long as nobody comes or goes."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Candidate[Session]]:
        return (self._candidate(session) for session in self._sessions)

    def first(self) -> Candidate[Session]:
        if self._first is None:
            self._first = self._candidate(self._sessions[0])
        return self._first

    def _candidate(self, session: Session) -> Candidate[Session]:
        port = exposed_port(session.ports, self._asked_port)
        assert port is not None
        return Candidate(session, port)

    def with_one_more(self, session: Session) -> Candidates[Session]:
        """With `session`, if it exposes the port."""
        if exposed_port(session.ports, self._asked_port) is None:
            return self
        return Candidates((*self._sessions, session), self._asked_port)

    def without(self, session: Session) -> Candidates[Session] | None:
        """Without `session`; None if nobody is left."""
        left = list(self._sessions)
        try:
            left.remove(session)
        except ValueError:
            return self
        return Candidates(left, self._asked_port) if left else None


class _Views(Sequence[AgentView]):
    """Views of sessions, each made when it is looked at."""

    __slots__ = ("__weakref__", "_sessions")

    def __init__(self, sessions: tuple[Member, ...]) -> None:
        self._sessions = sessions

    def __len__(self) -> int:
        return len(self._sessions)

    @overload
    def __getitem__(self, index: int) -> AgentView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AgentView]: ...
    def __getitem__(self, index: int | slice) -> AgentView | Sequence[AgentView]:
        if isinstance(index, slice):
            return _Views(self._sessions[index])
        return self._sessions[index].view()

    def __iter__(self) -> Iterator[AgentView]:
        for session in self._sessions:
            yield session.view()

    def __repr__(self) -> str:
        return f"<{len(self)} candidates>"


def exposed_port(exposed: tuple[int, ...], asked: int) -> int | None:
    """The port rule of DESIGN §3: the one asked for, or the only one there is for 80 and 443."""
    if asked in exposed:
        return asked
    if asked in DEFAULT_PORTS and len(exposed) == 1:
        return exposed[0]
    return None


def not_exposed(target: Target, exposed: Iterable[tuple[int, ...]]) -> PortNotExposed:
    """The error for agents that have the name, but not the port: it says what each exposes."""
    ports = sorted({port for each in exposed for port in each})
    told = ", ".join(map(str, ports[:PORTS_TOLD])) + (", …" if len(ports) > PORTS_TOLD else "")
    return PortNotExposed(
        f"{target}: the agent does not expose port {target.port} (exposed: {told or 'none'})"
    )
