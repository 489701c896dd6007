"""Dead paths are noticed by both ends of a parked connection, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from whip_core.heartbeat import PING_INTERVAL, SILENCE_LIMIT, Heartbeat

NOTICED_WITHIN = 45.0
"""Seconds: what DESIGN promises."""


class FakeTime:
    """A loop's clock and timers, driven by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> FakeTime:
        self._timers.append((self.now + delay, call))
        return self

    def cancel(self) -> None:
        self._timers.clear()

    def run_until(self, moment: float) -> None:
        while self._timers and min(self._timers, key=lambda timer: timer[0])[0] <= moment:
            timer = min(self._timers, key=lambda timer: timer[0])
            self._timers.remove(timer)
            self.now, call = timer
            call()
        self.now = moment


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    return FakeTime(monkeypatch)


def test_an_opener_whose_pings_are_answered_goes_on_for_ever(time: FakeTime) -> None:
    pings: list[float] = []
    heartbeat = Heartbeat(lambda: True, lambda: pings.append(time.now), pytest.fail)
    for step in range(1, 100):
        time.run_until(step * PING_INTERVAL)
        heartbeat.heard()
    assert len(pings) == 99


def test_an_opener_gives_up_when_a_ping_is_not_answered_by_the_next(time: FakeTime) -> None:
    given_up: list[float] = []
    Heartbeat(lambda: True, lambda: None, lambda _: given_up.append(time.now))
    time.run_until(1000)
    assert given_up == [2 * PING_INTERVAL]
    assert given_up[0] <= NOTICED_WITHIN


def test_an_acceptor_gives_up_after_the_silence_of_two_pings(time: FakeTime) -> None:
    given_up: list[float] = []
    heartbeat = Heartbeat(lambda: True, None, lambda _: given_up.append(time.now))
    time.run_until(30)
    heartbeat.heard()
    time.run_until(1000)
    assert given_up == [30 + SILENCE_LIMIT]
    assert SILENCE_LIMIT <= NOTICED_WITHIN


@pytest.mark.parametrize("ping", [None, lambda: pytest.fail("pinged during a stream")])
def test_while_a_stream_is_open_neither_side_judges(
    time: FakeTime, ping: Callable[[], None] | None
) -> None:
    Heartbeat(lambda: False, ping, pytest.fail)
    time.run_until(1000)


@pytest.mark.parametrize("opens", [True, False])
def test_a_stream_is_given_up_when_what_is_sent_is_not_acknowledged_for_long(
    time: FakeTime, opens: bool
) -> None:
    given_up: list[float] = []
    ping = (lambda: pytest.fail("pinged during a stream")) if opens else None
    cut_at = 100.0
    Heartbeat(
        lambda: False,
        ping,
        lambda _: given_up.append(time.now),
        lambda: max(0.0, time.now - cut_at),
    )
    time.run_until(1000)
    [moment] = given_up
    assert SILENCE_LIMIT <= moment - cut_at <= SILENCE_LIMIT + PING_INTERVAL


def test_a_stopped_heartbeat_does_nothing_more(time: FakeTime) -> None:
    Heartbeat(lambda: True, None, pytest.fail).stop()
    time.run_until(1000)
