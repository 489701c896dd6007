"""Which brokers to join and which to leave, when what was found differs from what is held."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from client_agent.endpoints import Address, Endpoint


@dataclass(frozen=True, slots=True)
class Change:
    """What to do: `join` each address in the name of its endpoint, `leave` the others."""

    join: Mapping[Address, Endpoint]
    leave: frozenset[Address]


def reconcile(
    found: Mapping[Endpoint, AbstractSet[Address]], held: Mapping[Address, Endpoint]
) -> Change:
    """Compare what each endpoint's discovery found last with the addresses that are held.

    An address that several endpoints give is joined once, for the first of them in the
    order of `found`; held for one of them, it stays so for as long as any of them gives
    it. An endpoint with an empty set has a resolver that failed: what is held for it
    stays. `held` maps the addresses that are joined now to the endpoints they are for.
    """
    wanted: dict[Address, Endpoint] = {}
    for endpoint, addresses in found.items():
        kept = addresses or {address for address, owner in held.items() if owner == endpoint}
        for address in sorted(kept):
            wanted.setdefault(address, endpoint)
    return Change(
        join={address: endpoint for address, endpoint in wanted.items() if address not in held},
        leave=frozenset(held.keys() - wanted.keys()),
    )
