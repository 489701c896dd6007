"""Sizing by demand: what dials find decides how many connections are kept."""

from __future__ import annotations

import pytest

from whip_core.parking import MAX_PARKED, MIN_PARKED, Demand


def test_at_rest_one_connection_is_kept_and_no_timer_needed() -> None:
    demand = Demand()
    assert demand.target == MIN_PARKED
    assert demand.at_rest


def test_each_dial_that_finds_none_raises_the_target_up_to_the_bound() -> None:
    demand = Demand()
    rises = [demand.missed() for _ in range(MAX_PARKED + 1)]
    assert demand.target == MAX_PARKED
    assert rises == [True] * (MAX_PARKED - MIN_PARKED) + [False] * 2
    assert not demand.at_rest


def test_a_window_with_a_miss_keeps_the_target() -> None:
    demand = Demand()
    demand.missed()
    assert demand.window_passed(idle=2).target == 2


def test_what_stayed_idle_for_a_whole_window_brings_the_target_down_again() -> None:
    demand = Demand()
    for _ in range(MAX_PARKED):
        demand.missed()
    demand.window_passed(idle=64)
    targets = [demand.window_passed(idle=demand.target).target for _ in range(7)]
    assert targets == [32, 16, 8, 4, 2, 1, 1]
    assert demand.at_rest


@pytest.mark.parametrize(
    ("fewest_idle", "idle", "surplus"),
    [
        (0, 16, 0),  # all were in use at some moment
        (3, 16, 3),
        (20, 16, 15),  # never more than there are, nor the last one
    ],
)
def test_only_the_surplus_of_a_whole_window_is_closed(
    fewest_idle: int, idle: int, surplus: int
) -> None:
    demand = Demand()
    demand.used(fewest_idle)
    assert demand.window_passed(idle).surplus == surplus


def test_connections_that_traffic_brings_back_are_kept_while_it_uses_them() -> None:
    demand = Demand()
    for _ in range(5):
        for idle_left in (15, 0, 7):
            demand.used(idle_left)
        assert demand.window_passed(idle=16).surplus == 0
