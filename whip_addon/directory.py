"""Names that a person types, looked up among the registered ones: exactly, or what is close."""

from __future__ import annotations

from collections.abc import Iterable

from whip_core.errors import UnknownName
from whip_core.names import AgentName, close_matches, normalize


def instance_named(name: str, known: Iterable[AgentName]) -> AgentName:
    """The registered instance of that name. Raises `UnknownName`, saying which are close."""
    by_name = {agent.full: agent for agent in known}
    try:
        return by_name[_normalized(name)]
    except KeyError:
        raise UnknownName(_unknown("instance", name, by_name)) from None


def members_of(domain: str, known: Iterable[AgentName]) -> list[AgentName]:
    """The registered instances of that domain, by name; raises `UnknownName` if there are none."""
    everybody = list(known)
    wanted = _normalized(domain)
    members = [agent for agent in everybody if agent.domain == wanted]
    if not members:
        raise UnknownName(_unknown("domain", domain, {agent.domain for agent in everybody}))
    return sorted(members, key=lambda agent: agent.full)


def _normalized(name: str) -> str:
    try:
        return normalize(name)
    except ValueError as error:
        raise UnknownName(str(error)) from error


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = close_matches(_normalized(name), names)
    if close:
        return f"there is no {kind} {name}; close to it: {', '.join(close)}"
    return f"there is no {kind} {name}, nor one with a name like it ({len(names)} registered)"
