"""The ways of choosing one agent of several that do not look at who asks.

random and two-choices look at one or two agents, round-robin at one, however many there
are. least-streams and lowest-rtt look at every one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from whip_core.agents import AgentView
from whip_core.caller import Caller
from whip_core.names import Target

MAX_TURNS = 10_000
"""Names whose turn round-robin remembers, the oldest forgotten: as many as domains are."""
NEAR_FACTOR = 1.1
NEAR_SECONDS = 0.001
"""Round trips that differ by no more are the same to lowest-rtt. They are measured on busy
event loops, seconds apart: a millisecond between two agents is chance, not distance."""


class Picker(Protocol):
    """Chooses one of `candidates`, of which there is at least one."""

    by_caller: bool
    """Whether it goes by the caller: then two requests may not share a connection."""

    def pick(
        self, target: Target, candidates: Sequence[AgentView], caller: Caller
    ) -> AgentView: ...


class RandomPicker:
    """Every candidate equally often."""

    by_caller = False

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        return self._chance.choice(candidates)


class RoundRobin:
    """One after the other, for each name by itself, beginning anywhere.

    Several brokers do not begin with the same one.
    """

    by_caller = False

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()
        self._turns: dict[str, int] = {}

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        turn = self._turns.get(target.name)
        if turn is None:
            turn = self._chance.randrange(len(candidates))
            if len(self._turns) >= MAX_TURNS:
                del self._turns[next(iter(self._turns))]
        self._turns[target.name] = turn + 1
        return candidates[turn % len(candidates)]


class LeastStreams:
    """One of those with the fewest streams."""

    by_caller = False

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        agents = list(candidates)
        fewest = min(agent.streams for agent in agents)
        return self._chance.choice([agent for agent in agents if agent.streams == fewest])


class LowestRTT:
    """One of those nearest by round trip.

    An agent that has just come is not measured yet. Until it is, it gets its even share,
    and no more: nobody knows where it is.
    """

    by_caller = False

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        agents = list(candidates)
        measured = [(agent.round_trip, agent) for agent in agents if agent.round_trip is not None]
        if self._chance.randrange(len(agents)) >= len(measured):
            return self._chance.choice([agent for agent in agents if agent.round_trip is None])
        lowest = min(seconds for seconds, _ in measured)
        near = max(lowest * NEAR_FACTOR, lowest + NEAR_SECONDS)
        return self._chance.choice([agent for seconds, agent in measured if seconds <= near])


class TwoChoices:
    """Of two random ones the one with fewer streams.

    Nearly as even as looking at all of them, at the price of looking at two (Mitzenmacher,
    The power of two choices in randomized load balancing, 2001). Brokers that do not know
    of each other's streams do not all run to the same agent either.
    """

    by_caller = False

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        if len(candidates) == 1:
            return candidates[0]
        one, other = self._chance.sample(range(len(candidates)), 2)
        first, second = candidates[one], candidates[other]
        return second if second.streams < first.streams else first
