"""The same instance for the same caller, for as long as that instance is there.

Multi-probe consistent hashing (Appleton and O'Reilly, 2015): every agent has one point on
a circle, a key has PROBES of them, and the agent belongs to a key whose point follows one
of the key's most closely. When an agent leaves, the keys that it had go to others, and no
other key moves; when one comes, it takes its share and nothing else moves. PROBES even the
shares out, as hundreds of points for each agent would, without their memory.

The points come from the agents' names, so that every broker, and every next run of one,
comes to the same agent.
"""

from __future__ import annotations

import functools
import hashlib
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from whip_core.agents import AgentView
from whip_core.caller import Caller
from whip_core.names import Target

PROBES = 21
"""The busiest of many agents has 5 % more keys than the mean (the paper's figure)."""
CIRCLE = 1 << 64
KEPT_POINTS = 32_768
"""Agents whose point is remembered: some megabytes, and more than a large domain has."""

KeyOf = Callable[[Caller], str | None]
"""What of a caller decides; None if the caller has nothing of the kind."""


def caller_key(caller: Caller) -> str | None:
    """The proxy's user, else the address that the caller comes from."""
    if caller.proxy_user is not None:
        return f"user {caller.proxy_user}"
    return f"address {_plain(caller.address[0])}" if caller.address is not None else None


def _plain(host: str) -> str:
    """One client has one key, whether it came to an IPv4 listener or to one for both."""
    head, _, last = host.rpartition(":")
    return last if head.lower() == "::ffff" and "." in last else host


def header_key(name: str) -> KeyOf:
    """The value of the request's header `name`."""
    lower = name.lower()

    def key(caller: Caller) -> str | None:
        return (caller.request.headers.get(lower) or None) if caller.request else None

    return key


def cookie_key(name: str) -> KeyOf:
    """The value of the request's cookie `name`."""

    def key(caller: Caller) -> str | None:
        sent = caller.request.headers.get("cookie", "") if caller.request else ""
        for pair in sent.split(";"):
            cookie, _, value = pair.partition("=")
            if cookie.strip() == name:
                return value.strip() or None
        return None

    return key


class Sticky:
    """A picker: the agent that a caller's key belongs to; any agent for a caller without one."""

    by_caller = True

    def __init__(self, key_of: KeyOf = caller_key, chance: random.Random | None = None) -> None:
        self._key_of = key_of
        self._chance = chance or random.SystemRandom()
        # Candidates are one object until an agent comes or goes.
        self._rings: WeakKeyDictionary[Sequence[AgentView], _Ring] = WeakKeyDictionary()

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        key = self._key_of(caller)
        if key is None:
            return self._chance.choice(candidates)
        return candidates[self._ring(candidates).find(key)]

    def _ring(self, candidates: Sequence[AgentView]) -> _Ring:
        try:
            ring = self._rings.get(candidates)
        except TypeError:  # a program's own list or tuple, which cannot be kept so
            return _Ring(candidates)
        if ring is None:
            ring = self._rings[candidates] = _Ring(candidates)
        return ring


class _Ring:
    def __init__(self, candidates: Sequence[AgentView]) -> None:
        points = sorted((_point(agent.name.full), index) for index, agent in enumerate(candidates))
        self._points = [point for point, _ in points]
        self._indexes = [index for _, index in points]

    def find(self, key: str) -> int:
        """The index of the candidate that `key` belongs to."""
        points = self._points
        digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).digest()
        probe, step = int.from_bytes(digest[:8]), int.from_bytes(digest[8:]) | 1
        nearest, found = CIRCLE, 0
        for _ in range(PROBES):
            place = bisect_left(points, probe) % len(points)
            distance = (points[place] - probe) % CIRCLE
            if distance < nearest:
                nearest, found = distance, place
            probe = (probe + step) % CIRCLE
        return self._indexes[found]


@functools.lru_cache(KEPT_POINTS)
def _point(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
