"""The same instance for the same caller, and how little moves when one comes or goes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from agent_views import view, views
from tunnel import broker_settings, registration, run, scripted
from whip_core import Broker, control
from whip_core.agents import AgentView
from whip_core.caller import NOBODY, Caller, HttpRequest
from whip_core.names import Target
from whip_core.sticky import Sticky, caller_key, cookie_key, header_key

TARGET = Target("testdom", 80)
KEYS = 4_000


def asking(**headers: str) -> Caller:
    request = HttpRequest("GET", "http", "testdom", "/", headers)
    return Caller(address=("192.0.2.7", 40000), request=request)


def placed(candidates: Sequence[AgentView]) -> dict[str, str]:
    """Where the picker puts each of many users."""
    picker = Sticky()
    return {
        user: picker.pick(TARGET, candidates, Caller(proxy_user=user)).name.hostname
        for user in map(str, range(KEYS))
    }


@pytest.mark.parametrize("agents", [2, 5, 50])
def test_when_one_of_n_leaves_only_its_share_moves(agents: int) -> None:
    all_of_them = views(agents)
    before = placed(all_of_them)
    for index in (0, agents // 2, agents - 1):
        gone = all_of_them[index].name.hostname
        after = placed(all_of_them[:index] + all_of_them[index + 1 :])
        moved = {user for user in before if before[user] != after[user]}
        assert moved == {user for user, host in before.items() if host == gone}
        assert len(moved) <= KEYS * (1 / agents + 0.05)


def test_when_one_comes_keys_move_to_it_and_nowhere_else() -> None:
    before, after = placed(views(9)), placed(views(10))
    assert {after[user] for user in before if before[user] != after[user]} == {"instance9"}


def test_the_shares_are_near_to_even() -> None:
    counts = Counter(placed(views(20)).values())
    assert len(counts) == 20
    assert max(counts.values()) <= KEYS / 20 * 1.5


def test_the_order_of_the_candidates_does_not_matter() -> None:
    shuffled = views(10)
    random.Random(1).shuffle(shuffled)
    assert placed(shuffled) == placed(views(10))


def test_every_broker_and_every_next_run_comes_to_the_same_agent() -> None:
    """Written down once: whoever changes this moves every user to another instance."""
    found = placed(views(5))
    assert [found[user] for user in "012345"] == [
        *("instance2", "instance1", "instance3"),
        *("instance0", "instance4", "instance4"),
    ]


def test_the_caller_is_the_proxys_user_else_the_address() -> None:
    picker, candidates = Sticky(), views(50)

    def host(caller: Caller) -> str:
        return picker.pick(TARGET, candidates, caller).name.hostname

    for port in range(10):
        assert host(Caller(address=("192.0.2.1", port))) == host(
            Caller(address=("192.0.2.1", 9999))
        )
        assert host(Caller(address=("192.0.2.1", port), proxy_user="me")) == host(
            Caller(proxy_user="me")
        )
    assert len({host(Caller(address=(f"192.0.2.{n}", 1))) for n in range(50)}) > 10


def test_a_client_has_one_key_at_listeners_for_ipv4_and_for_both() -> None:
    keys = {caller_key(Caller(address=(host, 1))) for host in ("192.0.2.1", "::ffff:192.0.2.1")}
    assert keys == {"address 192.0.2.1"}
    assert caller_key(Caller(address=("2001:db8::ffff", 1))) == "address 2001:db8::ffff"


def test_brokers_with_the_same_agents_bring_a_user_to_the_same_one() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            brokers = [
                await stack.enter_async_context(Broker(broker_settings(picker="sticky")))
                for _ in range(2)
            ]
            for broker, numbers in zip(brokers, (range(6), reversed(range(6))), strict=True):
                for number in numbers:
                    message = registration(f"instance{number}")
                    agent = await stack.enter_async_context(scripted(broker, message))
                    await agent.expect(control.Registered)
            reached = [
                [
                    broker.destination("testdom", 80, Caller(proxy_user=user))
                    for user in "abcdefghij"
                ]
                for broker in brokers
            ]
            assert reached[0] == reached[1]
            assert len({str(destination) for destination in reached[0]}) > 2

    run(main())


def test_a_header_or_a_cookie_decides_where_it_is_asked_for() -> None:
    candidates = views(50)
    by_header, by_cookie = Sticky(header_key("X-User")), Sticky(cookie_key("session"))
    for value in map(str, range(20)):
        header = by_header.pick(TARGET, candidates, asking(**{"x-user": value}))
        again = by_header.pick(TARGET, candidates, asking(**{"x-user": value, "x-else": "9"}))
        assert header is again
        cookie = by_cookie.pick(TARGET, candidates, asking(cookie=f"a=b; session={value}; c=d"))
        assert cookie is by_cookie.pick(TARGET, candidates, asking(cookie=f"session={value}"))


@pytest.mark.parametrize(
    ("picker", "caller"),
    [
        (Sticky(chance=random.Random(1)), NOBODY),
        (Sticky(header_key("x-user"), random.Random(1)), Caller(proxy_user="me")),
        (Sticky(header_key("x-user"), random.Random(1)), asking(**{"x-user": ""})),
        (Sticky(cookie_key("session"), random.Random(1)), asking(cookie="other=1; sessions=2")),
        (Sticky(cookie_key("session"), random.Random(1)), asking(cookie="session=")),
    ],
)
def test_who_has_no_key_is_sent_anywhere(picker: Sticky, caller: Caller) -> None:
    found = {picker.pick(TARGET, views(4), caller).name.hostname for _ in range(200)}
    assert len(found) == 4


def test_what_was_worked_out_for_some_candidates_is_not_used_for_others() -> None:
    picker, caller = Sticky(), Caller(proxy_user="0")
    assert picker.pick(TARGET, [view("a"), view("b")], caller).name.hostname in "ab"
    assert picker.pick(TARGET, [view("c"), view("d")], caller).name.hostname in "cd"
