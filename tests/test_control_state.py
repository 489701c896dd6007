"""The control stream's states as each end sees them, and round trips."""

from __future__ import annotations

import itertools

import pytest

from whip_core import control
from whip_core.control_state import (
    AGENT_SIDE,
    BROKER_SIDE,
    MAX_PINGS_OUTSTANDING,
    ControlState,
    RoundTrips,
    State,
)
from whip_core.errors import RemoteProtocolError

REGISTER = control.Register("instance1", "testdom", (80,))
FAILED = control.ConnectFailed("id", "why")
PONG = control.Pong(1, 0, 0)
DRAINING = control.Draining("stopping")
REGISTERED = control.Registered(1, "broker", "session", "secret", "localhost", 8000)
ALREADY = control.AlreadyRegistered("broker")
CONNECT = control.Connect("id", "localhost", 8000, 80)
PING = control.Ping(1, 0)
PARK = control.Park(2)
VISIT = control.Visit("broker", "session", "secret", "host", 1, 2)

FROM_AGENT = (REGISTER, FAILED, PONG, DRAINING)
FROM_BROKER = (REGISTERED, ALREADY, CONNECT, PING, PARK, VISIT, DRAINING)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ([], State.REGISTERING),
        ([REGISTER], State.REGISTERED),
        ([REGISTER, PONG, FAILED, PONG], State.REGISTERED),
        ([REGISTER, DRAINING], State.DRAINING),
        ([REGISTER, DRAINING, PONG, FAILED, DRAINING], State.DRAINING),
    ],
)
def test_what_a_broker_hears_from_an_agent(said: list[control.AgentMessage], state: State) -> None:
    side = ControlState(BROKER_SIDE)
    for message in said:
        side.receive(message)
    assert side.state is state


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ([REGISTERED], State.REGISTERED),
        ([REGISTERED, PING, CONNECT, PARK], State.REGISTERED),
        ([REGISTERED, DRAINING, CONNECT, PING, PARK, DRAINING], State.DRAINING),
        ([ALREADY], State.ENDED),
        ([PING], State.OLD),
        ([CONNECT, PING, CONNECT], State.OLD),
    ],
)
def test_what_an_agent_hears_from_a_broker(said: list[control.BrokerMessage], state: State) -> None:
    side = ControlState(AGENT_SIDE)
    for message in said:
        side.receive(message)
    assert side.state is state


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (BROKER_SIDE, [PONG]),
        (BROKER_SIDE, [DRAINING]),
        (BROKER_SIDE, [REGISTER, REGISTER]),
        (BROKER_SIDE, [REGISTER, DRAINING, REGISTER]),
        (BROKER_SIDE, [REGISTERED]),
        (AGENT_SIDE, [PARK]),
        (AGENT_SIDE, [DRAINING]),
        (AGENT_SIDE, [REGISTERED, REGISTERED]),
        (AGENT_SIDE, [REGISTERED, ALREADY]),
        (AGENT_SIDE, [ALREADY, PING]),
        (AGENT_SIDE, [PING, REGISTERED]),
        (AGENT_SIDE, [CONNECT, PARK]),
        (AGENT_SIDE, [REGISTER]),
    ],
)
def test_what_the_state_does_not_allow_is_the_peers_fault(
    table: dict[State, dict[type, State]], said: list[control.AgentMessage | control.BrokerMessage]
) -> None:
    side = ControlState(table)
    for message in said[:-1]:
        side.receive(message)
    before = side.state
    with pytest.raises(RemoteProtocolError, match=type(said[-1]).__name__):
        side.receive(said[-1])
    assert side.state is before


@pytest.mark.parametrize(
    ("table", "messages"), [(BROKER_SIDE, FROM_AGENT), (AGENT_SIDE, FROM_BROKER)]
)
def test_nothing_is_heard_after_the_end(
    table: dict[State, dict[type, State]],
    messages: tuple[control.AgentMessage | control.BrokerMessage, ...],
) -> None:
    side = ControlState(table)
    side.end()
    for message in messages:
        with pytest.raises(RemoteProtocolError, match="ended"):
            side.receive(message)


def test_the_tables_know_only_what_the_other_end_can_say() -> None:
    for table, messages in ((BROKER_SIDE, FROM_AGENT), (AGENT_SIDE, FROM_BROKER)):
        heard = set(itertools.chain.from_iterable(table.values()))
        assert heard == {type(message) for message in messages}
        reached = set(itertools.chain.from_iterable(moves.values() for moves in table.values()))
        assert reached <= set(table)


# Round trips


def pong_to(ping: control.Ping) -> control.Pong:
    return control.Pong(ping.sequence, ping.ping_timestamp, 99)


def test_a_round_trip_is_measured_by_our_clock_alone() -> None:
    trips = RoundTrips()
    ping = trips.ping(now=100.0, wall_clock=1_700_000_000_000_000_000)
    assert ping.ping_timestamp == 1_700_000_000_000_000_000
    assert trips.latest is None
    assert trips.pong(pong_to(ping), now=100.25) == 0.25
    assert trips.latest == 0.25


def test_pongs_may_come_in_any_order_and_each_counts_once() -> None:
    trips = RoundTrips()
    first, second = trips.ping(1.0, 0), trips.ping(2.0, 0)
    assert first.sequence != second.sequence
    assert trips.pong(pong_to(second), 2.5) == 0.5
    assert trips.pong(pong_to(first), 4.0) == 3.0
    assert trips.pong(pong_to(first), 5.0) is None
    assert trips.latest == 3.0


def test_a_pong_that_answers_no_ping_says_nothing() -> None:
    trips = RoundTrips()
    assert trips.pong(control.Pong(7, 0, 0), 1.0) is None
    assert trips.latest is None


def test_only_so_many_unanswered_pings_are_remembered() -> None:
    trips = RoundTrips()
    pings = [trips.ping(float(number), 0) for number in range(MAX_PINGS_OUTSTANDING + 1)]
    assert trips.pong(pong_to(pings[0]), 100.0) is None
    assert trips.pong(pong_to(pings[1]), 100.0) == 99.0
