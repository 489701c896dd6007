"""How each picker spreads the dials. Chance has a fixed seed: the same in every run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from agent_views import view, views
from whip_core import pickers
from whip_core.agents import AgentView
from whip_core.caller import NOBODY, Caller
from whip_core.names import Target
from whip_core.pickers import (
    MANY,
    LeastStreams,
    LowestRTT,
    Picker,
    RandomPicker,
    RoundRobin,
    TwoChoices,
)
from whip_core.sticky import Sticky

TARGET = Target("testdom", 80)
DEVIATION = 6
"""Standard deviations: even with another seed, less than one run in a hundred million."""


def seeded() -> random.Random:
    return random.Random(1)


def picked(picker: Picker, candidates: Sequence[AgentView], dials: int) -> Counter[str]:
    return Counter(picker.pick(TARGET, candidates, NOBODY).name.hostname for _ in range(dials))


def loads(picker: Picker, agents: int, dials: int) -> list[int]:
    """The streams of each agent after so many dials, none of which ended."""
    candidates = views(agents)
    for _ in range(dials):
        chosen = picker.pick(TARGET, candidates, NOBODY)
        index = candidates.index(chosen)
        candidates[index] = chosen._replace(streams=chosen.streams + 1)
    return sorted(agent.streams for agent in candidates)


def p99(values: Sequence[int]) -> int:
    return sorted(values)[len(values) * 99 // 100]


def assert_even(counts: Counter[str], agents: int) -> None:
    """As even as chance is: each within some standard deviations of its share."""
    dials = counts.total()
    share = 1 / agents
    allowed = DEVIATION * (dials * share * (1 - share)) ** 0.5
    assert len(counts) == agents
    assert all(abs(count - dials * share) < allowed for count in counts.values()), counts


@pytest.mark.parametrize("picker", [RandomPicker(seeded()), TwoChoices(seeded())])
@pytest.mark.parametrize("agents", [2, 10])
def test_equal_agents_are_picked_equally_often(picker: Picker, agents: int) -> None:
    assert_even(picked(picker, views(agents), 10_000), agents)


@pytest.mark.parametrize("make", [LeastStreams, LowestRTT])
def test_those_that_are_equally_good_are_picked_equally_often(
    make: type[LeastStreams] | type[LowestRTT],
) -> None:
    candidates = [*views(4, streams=2, round_trip=0.02), view("far", streams=9, round_trip=1.0)]
    counts = picked(make(seeded()), candidates, 10_000)
    assert "far" not in counts
    assert_even(counts, 4)


def test_the_default_takes_its_chance_from_the_system() -> None:
    assert_even(picked(RandomPicker(), views(3), 3_000), 3)


def test_round_robin_goes_round_each_name_by_itself() -> None:
    picker = RoundRobin(seeded())
    here, there = views(3), views(2, domain="otherdom")
    turns = [picker.pick(TARGET, here, NOBODY).name.hostname for _ in range(6)]
    assert sorted(turns[:3]) == ["instance0", "instance1", "instance2"]
    assert turns[3:] == turns[:3]
    other = Target("otherdom", 80)
    others = [picker.pick(other, there, NOBODY).name.hostname for _ in range(4)]
    assert sorted(others) == ["instance0", "instance0", "instance1", "instance1"]
    assert picker.pick(TARGET, here, NOBODY).name.hostname == turns[0]


def test_round_robin_takes_fewer_candidates_as_they_are() -> None:
    picker = RoundRobin(seeded())
    assert picked(picker, views(3), 5).total() == 5
    assert picked(picker, views(2), 4) == {"instance0": 2, "instance1": 2}


def test_round_robin_does_not_remember_names_without_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pickers, "MAX_TURNS", 2)
    picker = RoundRobin(seeded())
    for number in range(9):
        picker.pick(Target(f"domain{number}", 80), views(2), NOBODY)
    assert len(picker._turns) == 2


def test_least_streams_keeps_all_of_them_level() -> None:
    assert loads(LeastStreams(seeded()), agents=10, dials=105) == [10] * 5 + [11] * 5


def test_two_choices_never_picks_the_fullest_of_all() -> None:
    candidates = [*views(5), view("full", streams=1)]
    assert "full" not in picked(TwoChoices(seeded()), candidates, 1_000)


def test_the_p99_load_of_two_choices_is_below_that_of_chance() -> None:
    agents, dials = 200, 20_000
    even = dials // agents
    by_chance = p99(loads(RandomPicker(seeded()), agents, dials))
    by_two = p99(loads(TwoChoices(seeded()), agents, dials))
    assert by_two < by_chance
    # About log log n above the mean, where chance is some standard deviations above it.
    assert by_two <= even + 5 < by_chance


def test_the_nearest_agents_are_picked_and_a_millisecond_is_no_distance() -> None:
    near, also, far = (
        view(name, round_trip=seconds)
        for name, seconds in (("near", 0.0100), ("also", 0.0109), ("far", 0.0300))
    )
    counts = picked(LowestRTT(seeded()), [far, also, near], 1_000)
    assert set(counts) == {"near", "also"}


def test_an_agent_that_was_never_measured_is_tried_for_its_share() -> None:
    candidates = [
        view("new"),
        *(view(f"far{n}", round_trip=1.0) for n in range(3)),
        view("near", round_trip=0.01),
    ]
    counts = picked(LowestRTT(seeded()), candidates, 10_000)
    assert set(counts) == {"new", "near"}
    assert abs(counts["new"] - 2_000) < DEVIATION * 40


class Kept(list[AgentView]):
    """Candidates as a broker gives them: one object, which can be a key."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def test_very_many_agents_are_ranked_now_and_then_only() -> None:
    now = [1000.0]
    picker = LowestRTT(seeded(), lambda: now[0])
    candidates = Kept([*views(pickers.MANY, round_trip=1.0), view("near", round_trip=0.01)])
    assert set(picked(picker, candidates, 50)) == {"near"}
    candidates[0] = view("nearer", round_trip=0.001)
    assert set(picked(picker, candidates, 50)) == {"near"}
    now[0] += pickers.RANKING_SECONDS * 1.1
    assert set(picked(picker, candidates, 50)) == {"nearer"}
    assert set(picked(picker, views(pickers.MANY + 1), 500)) > {"instance1"}


def test_of_very_many_agents_the_idlest_of_some_is_picked() -> None:
    candidates = views(pickers.MANY * 4, streams=5) + views(pickers.MANY * 4, domain="otherdom")
    counts = Counter(
        LeastStreams(seeded()).pick(TARGET, candidates, NOBODY).streams for _ in range(100)
    )
    assert counts == {0: 100}, "with half of them idle, there is one among so many"


def test_without_any_measurement_all_are_tried() -> None:
    assert_even(picked(LowestRTT(seeded()), views(5), 5_000), 5)


@pytest.mark.parametrize("sequence", [list, tuple])
def test_a_programs_own_sequence_of_very_many_agents_will_do(
    sequence: Callable[[list[AgentView]], Sequence[AgentView]],
) -> None:
    candidates = sequence(views(MANY + 1, round_trip=1.0))
    for picker in (LowestRTT(seeded()), Sticky()):
        assert picker.pick(TARGET, candidates, Caller(proxy_user="a")) in candidates
