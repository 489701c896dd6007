"""Who may still come in: counts agents and dials against the limits. No I/O.

An agent's identity is the set of names that its certificate proves; in plaintext, where
nothing is proved, its address's host.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from whip_core.agents import Peer
from whip_core.caller import Caller
from whip_core.errors import Busy, RegistrationError
from whip_core.limits import Limits
from whip_core.names import Target

MAX_CALLERS = 10_000
"""Callers whose rate is remembered; the one that was quiet the longest is forgotten first,
and begins anew."""
BURST_SECONDS = 1.0
"""A caller that was quiet may have as many dials at once as in this time."""


class Admission:
    """One broker's counts. `clock` gives monotonic seconds."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._agents: Counter[frozenset[str] | str] = Counter()
        self._callers: OrderedDict[str, float] = OrderedDict()
        self._dials = 0

    # Agents

    def check_agent(self, peer: Peer) -> None:
        """Raises `RegistrationError` if there is no room for another agent like `peer`."""
        limits, identity = self._limits, _identity(peer)
        if limits.agents and self._agents.total() >= limits.agents:
            raise RegistrationError(
                f"the broker has {limits.agents} agents and takes no more", code="agents"
            )
        if limits.agents_per_identity and self._agents[identity] >= limits.agents_per_identity:
            raise RegistrationError(
                f"{limits.agents_per_identity} agents are registered with this identity, "
                "and there may be no more",
                code="agents-per-identity",
            )

    def agent_joined(self, peer: Peer) -> None:
        self._agents[_identity(peer)] += 1

    def agent_left(self, peer: Peer) -> None:
        identity = _identity(peer)
        self._agents[identity] -= 1
        if not self._agents[identity]:
            del self._agents[identity]

    # Dials and their streams

    def check_dial(self, target: Target, caller: Caller) -> None:
        """Raises `Busy` if there is no room for a dial, or none for `caller`."""
        limits = self._limits
        if limits.pending_dials and self._dials >= limits.pending_dials:
            raise Busy(
                f"{target}: {self._dials} dials are under way already", reason="pending-dials"
            )
        self._check_rate(target, caller)

    @contextmanager
    def dial(self, target: Target, caller: Caller, *, goes_on: bool = False) -> Iterator[None]:
        """Around a dial, checked as by `check_dial` unless it `goes_on` after that."""
        if not goes_on:
            self.check_dial(target, caller)
        self._dials += 1
        try:
            yield
        finally:
            self._dials -= 1

    def check_streams(self, target: Target, open_in_all: int) -> None:
        """Raises `Busy` if there may be no more streams than these, opening ones among them."""
        if self._limits.streams and open_in_all >= self._limits.streams:
            raise Busy(f"{target}: the broker has {open_in_all} open streams", reason="streams")

    def check_streams_of_agent(self, target: Target, open_to_agent: int) -> None:
        """The same for those to one agent: another may do."""
        if self._limits.streams_per_agent and open_to_agent >= self._limits.streams_per_agent:
            raise Busy(
                f"{target}: the agent has {open_to_agent} open streams", reason="streams-per-agent"
            )

    def _check_rate(self, target: Target, caller: Caller) -> None:
        """A token bucket, kept as the moment at which it is full again."""
        who = caller.proxy_user or (caller.address[0] if caller.address else None)
        if not self._limits.dial_rate or who is None:  # who has no address is this very process
            return
        now, interval = self._clock(), 1 / self._limits.dial_rate
        full_at = max(self._callers.get(who, now), now) + interval
        if full_at - now > max(BURST_SECONDS, interval):
            raise Busy(
                f"{target}: {who} dials more than {self._limits.dial_rate:g} times a second",
                reason="dial-rate",
            )
        self._callers[who] = full_at
        self._callers.move_to_end(who)
        if len(self._callers) > MAX_CALLERS:
            self._callers.popitem(last=False)


def _identity(peer: Peer) -> frozenset[str] | str:
    names = peer.certificate_names
    return frozenset(names) if names is not None else peer.address[0]
