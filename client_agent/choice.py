"""How many of an endpoint's brokers an agent holds, and which.

All of them, unless they are joined by a fabric, over which each reaches the agents of the
others: then a few are enough. Which ones each agent ranks for itself, by a hash, so that a
thousand agents spread evenly over the brokers, and each comes back to the same ones.

Whether there is a fabric only a broker can say. So an agent begins with the first few of its
ranking; the first that says there is none has it join them all. One that does not answer
does not count, and the next in the ranking takes its place until it does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import Enum

from client_agent.endpoints import Address


class Standing(Enum):
    """What has become of an address so far."""

    NEW = "being tried"
    ALONE = "registered, at a broker without a fabric"
    JOINED = "registered, at a broker with one"
    ASIDE = "a broker that is held by another address"
    FAILING = "not answering"


def choose(
    addresses: Iterable[Address], standing: Mapping[Address, Standing], count: int, seed: str
) -> list[Address]:
    """Which of one endpoint's `addresses` to hold; those without a standing are new.

    A `count` of 0 is all of them. `seed` makes the ranking this agent's own.
    """
    ranked = sorted(addresses, key=lambda address: _rank(seed, address))
    if not count or Standing.ALONE in (standing.get(address) for address in ranked):
        return ranked
    chosen: list[Address] = []
    for address in ranked:
        if not count:
            break
        chosen.append(address)
        if standing.get(address, Standing.NEW) in (Standing.NEW, Standing.JOINED):
            count -= 1
    return chosen


def _rank(seed: str, address: Address) -> bytes:
    return hashlib.sha256(f"{seed} {address}".encode()).digest()
