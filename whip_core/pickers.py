"""The ways of choosing one agent of several that do not look at who asks.

None of them takes longer for very many agents than for some: a pick holds up everything.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

from whip_core.agents import AgentView
from whip_core.caller import Caller
from whip_core.names import Target

MAX_TURNS = 10_000
"""Names whose turn round-robin remembers, the oldest forgotten: as many as domains are."""
MANY = 256
"""Of more agents than these not every one is looked at for each dial: that is half a
millisecond. The idlest of so many is as good as the idlest of all."""
RANKING_SECONDS = 1.0
"""For how long very many agents stay ranked: round trips are measured every 20 s only."""
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
    """One of those with the fewest streams; of very many agents, the best of some of them."""

    by_caller = False

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        if len(candidates) > MANY:
            indexes = self._chance.sample(range(len(candidates)), MANY)
            agents = [candidates[index] for index in indexes]
        else:
            agents = list(candidates)
        fewest = min(agent.streams for agent in agents)
        return self._chance.choice([agent for agent in agents if agent.streams == fewest])


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Which of the candidates, by index, are near, and which were never measured."""

    near: Sequence[int]
    unmeasured: Sequence[int]
    made_at: float

    @classmethod
    def of(cls, candidates: Sequence[AgentView], now: float) -> _Ranking:
        trips = [agent.round_trip for agent in candidates]
        unmeasured = [index for index, seconds in enumerate(trips) if seconds is None]
        lowest = min((seconds for seconds in trips if seconds is not None), default=0.0)
        bound = max(lowest * NEAR_FACTOR, lowest + NEAR_SECONDS)
        near = [
            index for index, seconds in enumerate(trips) if seconds is not None and seconds <= bound
        ]
        return cls(near, unmeasured, now)


class LowestRTT:
    """One of those nearest by round trip.

    An agent that has just come is not measured yet. Until it is, it gets its even share,
    and no more: nobody knows where it is.
    """

    by_caller = False

    def __init__(
        self, chance: random.Random | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._chance = chance or random.SystemRandom()
        self._now = now
        # Candidates are one object until an agent comes or goes.
        self._rankings: WeakKeyDictionary[Sequence[AgentView], _Ranking] = WeakKeyDictionary()

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
        ranking = self._ranking(candidates)
        turn = self._chance.randrange(len(candidates))
        return candidates[
            self._chance.choice(ranking.near)
            if turn >= len(ranking.unmeasured)
            else ranking.unmeasured[turn]
        ]

    def _ranking(self, candidates: Sequence[AgentView]) -> _Ranking:
        now = self._now()
        if len(candidates) <= MANY:
            return _Ranking.of(candidates, now)
        try:
            ranking = self._rankings.get(candidates)
        except TypeError:  # a program's own list or tuple, which cannot be kept so
            return _Ranking.of(candidates, now)
        if ranking is None or now - ranking.made_at > RANKING_SECONDS:
            ranking = self._rankings[candidates] = _Ranking.of(candidates, now)
        return ranking


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
