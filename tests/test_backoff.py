"""The delays between attempts that keep failing."""

from __future__ import annotations

import random

from client_agent.backoff import FIRST_BOUND, MAX_BOUND, RETURN_BOUND, Backoff


def always_most() -> float:
    return 1.0


def test_the_bound_doubles_from_half_a_second_to_thirty_and_stays_there() -> None:
    backoff = Backoff(random=always_most)

    assert [backoff.next_delay() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_success_starts_again_at_the_first_bound() -> None:
    backoff = Backoff(random=always_most)
    for _ in range(5):
        backoff.next_delay()

    backoff.reset()

    assert [backoff.next_delay() for _ in range(2)] == [FIRST_BOUND, 2 * FIRST_BOUND]


def test_the_jitter_is_full_so_a_delay_can_be_anything_from_zero_to_the_bound() -> None:
    parts = iter([0.0, 0.25, 0.5])
    backoff = Backoff(random=lambda: next(parts))

    assert [backoff.next_delay() for _ in range(3)] == [0.0, 0.25, 1.0]


def test_two_agents_that_lost_the_same_broker_do_not_come_back_in_step() -> None:
    one, other = Backoff(), Backoff()

    assert [one.next_delay() for _ in range(9)] != [other.next_delay() for _ in range(9)]


def test_a_failure_that_never_ends_keeps_the_bound() -> None:
    backoff = Backoff(random=always_most)

    assert max(backoff.next_delay() for _ in range(5_000)) == MAX_BOUND


def test_no_delay_is_longer_than_the_maximum_that_was_chosen() -> None:
    backoff = Backoff(maximum=0.2, random=always_most)

    assert [backoff.next_delay() for _ in range(3)] == [0.2, 0.2, 0.2]


def test_the_first_delay_after_a_loss_is_spread_wider_and_the_next_are_as_ever() -> None:
    backoff = Backoff(random=always_most)
    for _ in range(5):
        backoff.next_delay()

    backoff.lost()

    assert [backoff.next_delay() for _ in range(3)] == [RETURN_BOUND, FIRST_BOUND, 2 * FIRST_BOUND]


def test_a_success_ends_what_a_loss_began() -> None:
    backoff = Backoff(random=always_most)
    backoff.lost()
    backoff.reset()

    assert backoff.next_delay() == FIRST_BOUND


def test_a_thousand_that_lost_their_broker_at_once_do_not_come_back_in_the_same_second() -> None:
    chance = random.Random(5)
    agents = [Backoff(random=chance.random) for _ in range(1_000)]
    for agent in agents:
        agent.lost()
    delays = sorted(agent.next_delay() for agent in agents)

    busiest = max(sum(start <= delay < start + 1 for delay in delays) for start in delays)

    assert busiest < 1_000 / RETURN_BOUND * 1.25
