"""Counting agents and dials against the limits, on a clock of the test's own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from whip_core.admission import MAX_CALLERS, Admission
from whip_core.agents import Peer
from whip_core.caller import NOBODY, Caller
from whip_core.errors import Busy, DialError, RegistrationError
from whip_core.limits import Limits
from whip_core.names import Target

TARGET = Target("testdom", 80)
EVE = Caller(address=("192.0.2.1", 1000))
BOB = Caller(address=("192.0.2.2", 1000))
NONE = {"unauthenticated": 0, "agents": 0, "agents_per_identity": 0, "streams": 0}
NONE |= {"streams_per_agent": 0, "pending_dials": 0, "dial_rate": 0}


def peer(*names: str, host: str = "192.0.2.1") -> Peer:
    return Peer((host, 1000), names or None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def reason(error: pytest.ExceptionInfo[Busy]) -> str:
    assert isinstance(error.value, DialError)
    assert error.value.http_status == 503
    assert str(error.value).startswith("testdom:80: ")
    return error.value.reason


def test_agents_are_bounded_in_all_and_for_each_identity() -> None:
    admission = Admission(Limits(agents=3, agents_per_identity=2))
    one, two = peer("a.example", "b.example"), peer("b.example", "a.example")
    admission.agent_joined(one)
    admission.check_agent(two)
    admission.agent_joined(two)
    with pytest.raises(RegistrationError) as raised:
        admission.check_agent(one)
    assert raised.value.code == "agents-per-identity"
    other = peer("c.example")
    admission.check_agent(other)
    admission.agent_joined(other)
    with pytest.raises(RegistrationError) as raised:
        admission.check_agent(peer("d.example"))
    assert raised.value.code == "agents"
    admission.agent_left(one)
    admission.check_agent(one)


def test_without_certificates_an_identity_is_an_address() -> None:
    admission = Admission(Limits(agents_per_identity=1))
    admission.agent_joined(peer())
    admission.check_agent(peer(host="192.0.2.2"))
    with pytest.raises(RegistrationError):
        admission.check_agent(peer())


def test_dials_under_way_are_bounded() -> None:
    admission = Admission(Limits(pending_dials=1))
    with admission.dial(TARGET, EVE):
        with pytest.raises(Busy) as raised, admission.dial(TARGET, BOB):
            pass
        assert reason(raised) == "pending-dials"
    with admission.dial(TARGET, BOB):
        pass


def test_a_caller_has_a_burst_and_then_its_rate_and_others_have_theirs() -> None:
    clock = Clock()
    admission = Admission(Limits(dial_rate=2), clock)

    def dials(caller: Caller) -> int:
        count = 0
        try:
            while count < 100:
                with admission.dial(TARGET, caller):
                    count += 1
        except Busy as busy:
            assert busy.reason == "dial-rate"
        return count

    assert dials(EVE) == 2
    assert dials(BOB) == 2
    clock.now += 0.5
    assert dials(EVE) == 1
    clock.now += 1000
    assert dials(EVE) == 2
    assert dials(NOBODY) == 100, "who has no address is this very process"


def test_a_proxy_user_is_one_caller_wherever_it_comes_from() -> None:
    admission = Admission(Limits(dial_rate=0.5), Clock())
    with admission.dial(TARGET, Caller(address=("192.0.2.1", 1), proxy_user="eve")):
        pass
    elsewhere = Caller(address=("192.0.2.2", 1), proxy_user="eve")
    with pytest.raises(Busy) as raised, admission.dial(TARGET, elsewhere):
        pass
    assert reason(raised) == "dial-rate"


def test_callers_are_forgotten_past_a_bound() -> None:
    admission = Admission(Limits(dial_rate=1), Clock())
    for number in range(MAX_CALLERS + 1):
        with admission.dial(TARGET, Caller(address=(str(number), 1))):
            pass
    assert len(admission._callers) == MAX_CALLERS
    with admission.dial(TARGET, Caller(address=("0", 1))):
        pass


@pytest.mark.parametrize(
    ("limits", "why"),
    [(Limits(streams=2), "streams"), (Limits(streams_per_agent=2), "streams-per-agent")],
)
def test_streams_are_bounded(limits: Limits, why: str) -> None:
    admission = Admission(limits)

    def check(count: int) -> None:
        admission.check_streams(TARGET, count)
        admission.check_streams_of_agent(TARGET, count)

    check(1)
    with pytest.raises(Busy) as raised:
        check(2)
    assert reason(raised) == why


def test_zero_is_no_limit() -> None:
    admission = Admission(Limits(**NONE))
    for _ in range(10):
        admission.check_agent(peer("a.example"))
        admission.agent_joined(peer("a.example"))
    with ExitStack() as stack:
        for _ in range(10_000):
            stack.enter_context(admission.dial(TARGET, EVE))
    admission.check_streams(TARGET, 10**6)
    admission.check_streams_of_agent(TARGET, 10**6)
