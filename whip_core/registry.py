"""Who is registered under which name. State only: the caller does the I/O that follows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Generic

from whip_core.candidates import Candidate, Candidates, Session, exposed_port, not_exposed
from whip_core.errors import UnknownName
from whip_core.names import AgentName, Target, close_matches, is_within

MAX_REMEMBERED_DOMAINS = 10_000
"""Domains that once had an agent stay ours (their names must not leak to public DNS); the
oldest are forgotten past this many, so that a flood of registrations cannot fill memory."""
MAX_COMPARED_NAMES = 1_000
"""Names that a mistyped one is compared with: some milliseconds of work, no more."""
MAX_KEPT_PORTS = 16
"""Ports of a domain, or of an instance, whose candidates are kept for the next dial: more than
services have."""


@dataclass(frozen=True, slots=True)
class Joined(Generic[Session]):
    """The session holds its name now; `replaced` held it before, and has to be ended."""

    replaced: Session | None


@dataclass(frozen=True, slots=True)
class Contested(Generic[Session]):
    """Another instance holds the name: probe it, then `take_over` or refuse."""

    holder: Session


class Registry(Generic[Session]):
    """Sessions by name and by domain. Compares identity, never names, when one leaves."""

    def __init__(self) -> None:
        self._by_name: dict[str, Session] = {}
        self._by_domain: dict[str, dict[str, Session]] = {}
        self._candidates: dict[str, dict[int, Candidates[Session]]] = {}
        """By domain and port, and right at every moment: found once, then kept up."""
        self._alone: dict[str, dict[int, Candidates[Session]]] = {}
        """The same by an instance's own name, as long as it may serve."""
        self._domains_seen: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._by_name.values()))

    def get(self, full_name: str) -> Session | None:
        return self._by_name.get(full_name)

    def register(self, session: Session) -> Joined[Session] | Contested[Session]:
        """Enter a session, unless another instance holds its name."""
        holder = self._by_name.get(session.name.full)
        if holder is None:
            return self.take_over(session)
        if session.instance_id and holder.instance_id == session.instance_id:
            return self.take_over(session)
        return Contested(holder)

    def take_over(self, session: Session) -> Joined[Session]:
        """Enter a session whoever holds its name."""
        name = session.name
        replaced = self._by_name.get(name.full)
        if replaced is not None:
            self.remove(replaced)
        self._by_name[name.full] = session
        self._by_domain.setdefault(name.domain, {})[name.full] = session
        kept = self._candidates.get(name.domain, {})
        for port, candidates in kept.items():
            kept[port] = candidates.with_one_more(session)
        self._remember(name.domain)
        return Joined(replaced)

    def remove(self, session: Session) -> bool:
        """Take a session out, if it is still the one that holds its name."""
        name = session.name
        if self._by_name.get(name.full) is not session:
            return False
        del self._by_name[name.full]
        self._alone.pop(name.full, None)
        members = self._by_domain[name.domain]
        del members[name.full]
        if not members:
            del self._by_domain[name.domain]
        self._drop_candidate(session)
        return True

    def standing_changed(self, session: Session) -> None:
        """To be called when a session begins to drain, is ejected, or is not any more."""
        self._candidates.pop(session.name.domain, None)
        self._alone.pop(session.name.full, None)

    def _drop_candidate(self, session: Session) -> None:
        kept = self._candidates.get(session.name.domain, {})
        for port, candidates in tuple(kept.items()):
            left = candidates.without(session)
            if left is None:
                del kept[port]
            else:
                kept[port] = left
        if not kept:
            self._candidates.pop(session.name.domain, None)

    def _remember(self, domain: str) -> None:
        self._domains_seen.pop(domain, None)
        self._domains_seen[domain] = None
        if len(self._domains_seen) > MAX_REMEMBERED_DOMAINS:
            del self._domains_seen[next(iter(self._domains_seen))]

    @property
    def domains(self) -> list[str]:
        """The domains that have, or ever had, an agent."""
        return list(self._domains_seen)

    def is_ours(self, name: str) -> bool:
        """Whether a normalized name is registered, or in a domain that ever had an agent."""
        if name in self._by_name:
            return True
        parent = name
        while parent:
            if parent in self._domains_seen or parent in self._by_domain:
                return True
            parent = parent.partition(".")[2]
        return False

    def named(self, name: str) -> list[Session]:
        """The instance of that name, else the domain's members, without those that drain."""
        instance = self._by_name.get(name)
        named = [instance] if instance else self._by_domain.get(name, {}).values()
        return [session for session in named if not session.draining]

    def resolve(self, target: Target, without: Collection[Session] = ()) -> Candidates[Session]:
        """Who may serve `target`: the instance of that name, else the domain's members.

        Those in `without` are left out, and of a domain also those that are ejected, as
        long as there are others. Raises `UnknownName` or `PortNotExposed`, saying which
        names are close or which ports are exposed.
        """
        instance = self._by_name.get(target.name)
        if instance is not None:
            alone = self._alone.get(target.name, {}).get(target.port)
            if alone is None or without:
                alone = self._find(target, (instance,), without)[0]
                _keep(self._alone.setdefault(target.name, {}), target.port, alone)
            return alone
        kept = self._candidates.get(target.name, {}).get(target.port)
        if kept is not None and not without:
            return kept
        members = self._by_domain.get(target.name, {}).values()
        candidates, may_be_kept = self._find(target, members, without)
        if may_be_kept and not without:
            _keep(self._candidates.setdefault(target.name, {}), target.port, candidates)
        return candidates

    def _find(
        self, target: Target, named: Collection[Session], without: Collection[Session]
    ) -> tuple[Candidates[Session], bool]:
        """The candidates; and whether they stay right as members come and go."""
        members = [session for session in named if not session.draining and session not in without]
        if not members:
            raise UnknownName(self._unknown(target, draining=bool(named)))
        exposing = [
            session for session in members if exposed_port(session.ports, target.port) is not None
        ]
        if not exposing:
            raise not_exposed(target, (session.ports for session in members))
        healthy = [session for session in exposing if not session.ejected]
        return Candidates(healthy or exposing, target.port), bool(healthy)

    def candidate(self, target: Target, name: AgentName) -> Candidate[Session] | None:
        """The session of that name, if it may serve `target`."""
        session = self._by_name.get(name.full)
        if session is None or session.draining:
            return None
        if target.name not in (session.name.full, session.name.domain):
            return None
        port = exposed_port(session.ports, target.port)
        return Candidate(session, port) if port is not None else None

    def _unknown(self, target: Target, *, draining: bool) -> str:
        if draining:
            return f"{target}: every agent of that name is draining; none takes new connections"
        known = {*self._by_name, *self._by_domain}
        close = close_matches(target.name, known) if len(known) <= MAX_COMPARED_NAMES else []
        if close:
            hint = f"registered names like it: {', '.join(close)}"
        elif is_within(target.name, self._by_domain):
            hint = "agents of its domain are registered, this one is not"
        elif len(known) > MAX_COMPARED_NAMES:
            hint = f"registered agents: {len(self._by_name)}"
        else:
            hint = f"registered agents: {len(self._by_name)}, none with a name like it"
        return f"{target}: no agent is registered under that name ({hint})"


def _keep(kept: dict[int, Candidates[Session]], port: int, candidates: Candidates[Session]) -> None:
    if len(kept) >= MAX_KEPT_PORTS:
        del kept[next(iter(kept))]
    kept[port] = candidates
