"""The table of agents as an operator wants it: searched, sorted, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from whip_core.agents import AgentView
from whip_core.names import printable
from whip_core.routes import BadRequest

MAX_LIMIT = 10_000
"""Rows in one answer: as many agents as one broker is made for."""
MAX_SEARCH = 200
"""Characters of a search."""
SHOWN = 256
"""Characters of a text that an agent chose."""


@dataclass(frozen=True, slots=True)
class Row:
    """An agent, and the bytes that went through it since it registered."""

    agent: AgentView
    broker: str
    to_agent: int = 0
    from_agent: int = 0

    def as_dict(self, round_trips: Iterable[float] = ()) -> dict[str, Any]:
        """What JSON has of it, with its last round trips, in seconds.

        Texts hold no control characters, and have an end.
        """
        agent = self.agent
        return {
            "name": agent.name.full,
            "hostname": agent.name.hostname,
            "domain": agent.name.domain,
            "labels": {
                printable(key, SHOWN): printable(value, SHOWN)
                for key, value in sorted(agent.labels.items())
            },
            "ports": list(agent.ports),
            "address": agent.address[0],
            "round_trip_ms": _milliseconds(agent.round_trip),
            "round_trips_ms": [_milliseconds(seconds) for seconds in round_trips],
            "streams": agent.streams,
            "parked": agent.parked,
            "bytes_to_agent": self.to_agent,
            "bytes_from_agent": self.from_agent,
            "since": round(agent.registered_at, 3),
            "version": printable(agent.software_version, SHOWN),
            "protocol": agent.protocol_version,
            "certificate_names": [printable(name, SHOWN) for name in agent.certificate_names],
            "draining": agent.draining,
            "ejected": agent.ejected,
            "broker": self.broker,
        }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


SORT_KEYS: Mapping[str, Callable[[Row], Any]] = {
    "name": lambda row: (row.agent.name.domain, row.agent.name.hostname),
    "address": lambda row: row.agent.address,
    "round_trip": lambda row: -1 if row.agent.round_trip is None else row.agent.round_trip,
    "streams": lambda row: row.agent.streams,
    "parked": lambda row: row.agent.parked,
    "to_agent": lambda row: row.to_agent,
    "from_agent": lambda row: row.from_agent,
    "since": lambda row: row.agent.registered_at,
    "version": lambda row: row.agent.software_version,
}


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows. A search is words that all have to be in an agent's texts."""

    words: tuple[str, ...] = ()
    sort: str = "name"
    descending: bool = False
    offset: int = 0
    limit: int = MAX_LIMIT

    ARGUMENTS = ("search", "sort", "offset", "limit")

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> Query:
        """Raises `BadRequest`."""
        search = arguments.get("search", "")
        if len(search) > MAX_SEARCH:
            raise BadRequest(f"search is longer than {MAX_SEARCH} characters")
        sort = arguments.get("sort", "name")
        key = sort.removeprefix("-")
        if key not in SORT_KEYS:
            raise BadRequest(
                f"sort={printable(sort, SHOWN)!r} is not one of {', '.join(SORT_KEYS)} "
                "(prefix with - to reverse the order)"
            )
        return cls(
            words=tuple(search.lower().split()),
            sort=key,
            descending=sort.startswith("-"),
            offset=whole_number(arguments, "offset", 0, 0, 10**9),
            limit=whole_number(arguments, "limit", MAX_LIMIT, 1, MAX_LIMIT),
        )


def whole_number(
    arguments: Mapping[str, str], name: str, default: int, least: int, most: int
) -> int:
    """An argument that is a number. Raises `BadRequest`."""
    text = arguments.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise BadRequest(
            f"{name}={printable(text, SHOWN)!r} is not a whole number from {least} to {most}"
        )
    return int(text)


def select(rows: Iterable[Row], query: Query) -> tuple[list[Row], int]:
    """The rows of the query's page, and how many match it in all."""
    found = [row for row in rows if _matches(row.agent, query.words)] if query.words else [*rows]
    found.sort(key=SORT_KEYS["name"])
    if query.sort != "name" or query.descending:
        found.sort(key=SORT_KEYS[query.sort], reverse=query.descending)
    return found[query.offset : query.offset + query.limit], len(found)


def _matches(agent: AgentView, words: Iterable[str]) -> bool:
    texts = [agent.name.full, agent.address[0], agent.software_version]
    texts += [f"{key}={value}" for key, value in agent.labels.items()]
    texts += ["draining"] if agent.draining else []
    texts += ["ejected"] if agent.ejected else []
    text = "\n".join(texts).lower()
    return all(word in text for word in words)
