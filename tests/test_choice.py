"""Which of an endpoint's brokers an agent holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from client_agent.choice import Standing, choose
from client_agent.discovery import Resolvers
from client_agent.endpoints import Address
from dns_server import DNSServer
from fabrics import Local, eventually, joined
from tunnel import agent_settings, broker_settings, echo, exchange, run, running, service
from whip_core import Broker

ADDRESSES = [Address(f"10.0.0.{number}", 50051) for number in range(1, 11)]


def test_the_first_of_the_ranking_are_tried_and_it_is_always_the_same() -> None:
    chosen = choose(ADDRESSES, {}, 2, "instance1.testdom")
    assert len(chosen) == 2
    assert choose(reversed(ADDRESSES), {}, 2, "instance1.testdom") == chosen


@pytest.mark.parametrize("count", [1, 2, 5])
def test_many_agents_spread_evenly(count: int) -> None:
    held = Counter(
        address
        for agent in range(2000)
        for address in choose(ADDRESSES, {}, count, f"instance{agent}.testdom")
    )
    for address in ADDRESSES:
        assert held[address] == pytest.approx(200 * count, rel=0.25)


def test_a_broker_without_a_fabric_has_them_all_joined() -> None:
    [first, second] = choose(ADDRESSES, {}, 2, "a")
    standing = {first: Standing.ALONE, second: Standing.FAILING}
    assert set(choose(ADDRESSES, standing, 2, "a")) == set(ADDRESSES)
    assert set(choose(ADDRESSES, {}, 0, "a")) == set(ADDRESSES)


def test_one_that_does_not_answer_has_the_next_take_its_place_until_it_does() -> None:
    ranked = choose(ADDRESSES, {}, 10, "a")
    first, second, third = ranked[:3]
    failing = {first: Standing.FAILING, second: Standing.JOINED}
    assert choose(ADDRESSES, failing, 2, "a") == [first, second, third]
    healed = {first: Standing.JOINED, second: Standing.JOINED, third: Standing.JOINED}
    assert choose(ADDRESSES, healed, 2, "a") == [first, second]
    twice = {first: Standing.JOINED, second: Standing.ASIDE}
    assert choose(ADDRESSES, twice, 2, "a") == [first, second, third]


async def reached(broker: Broker) -> bool:
    streams = await broker.open_connection("instance1.testdom", 80, wait=10)
    return await exchange(streams, b"hello") == b"hello"


def test_an_agent_holds_two_of_four_is_reached_from_all_and_replaces_one_that_ends() -> None:
    async def main() -> None:
        async with (
            DNSServer() as dns,
            service(echo) as port,
            joined(Local(), 4) as brokers,
        ):
            records = [f"0 0 {broker.control_port} broker.test." for broker in brokers]
            dns.set("_whip._tcp.brokers.test", "SRV", *records)
            dns.set("broker.test", "A", "127.0.0.1")
            resolvers = Resolvers(nameservers=["127.0.0.1"], nameserver_port=dns.port)
            settings = agent_settings("srv:_whip._tcp.brokers.test", ports=f"80={port}")

            def holders() -> list[Broker]:
                return [broker for broker in brokers if broker.agents]

            async with running(settings, resolvers):
                await eventually(lambda: len(holders()) == 2)
                for broker in brokers:
                    assert await reached(broker)
                assert len(holders()) == 2
                ended, kept = holders()
                await ended.drain(10)  # which sends its agents to another one
                await eventually(lambda: len(holders()) == 3)
                await ended.__aexit__(None, None, None)
                await eventually(lambda: len(holders()) == 2 and ended not in holders())
                assert kept in holders()
                for broker in brokers:
                    if broker is not ended:
                        assert await reached(broker)

    run(main())


def test_without_a_fabric_an_agent_joins_them_all() -> None:
    async def main() -> None:
        async with (
            DNSServer() as dns,
            AsyncExitStack() as stack,
        ):
            brokers = [await stack.enter_async_context(Broker(broker_settings())) for _ in range(4)]
            records = [f"0 0 {broker.control_port} broker.test." for broker in brokers]
            dns.set("_whip._tcp.brokers.test", "SRV", *records)
            dns.set("broker.test", "A", "127.0.0.1")
            resolvers = Resolvers(nameservers=["127.0.0.1"], nameserver_port=dns.port)
            settings = agent_settings("srv:_whip._tcp.brokers.test", ports="80")
            async with running(settings, resolvers):
                await eventually(lambda: all(broker.agents for broker in brokers))

    run(main())


def test_an_agent_that_is_cancelled_joins_nobody_any_more(tmp_path: Path) -> None:
    """It has ten addresses, of which none answers: reason enough to try the next."""
    hosts = tmp_path / "hosts"
    hosts.write_text("\n".join(f"127.0.0.{number} brokers.test" for number in range(2, 12)))
    settings = agent_settings("brokers.test:1", ports="80")

    async def main() -> None:
        async with running(settings, Resolvers(hosts_file=hosts)) as agent:
            await eventually(lambda: len(agent._workers) >= 2)
        for worker in agent._workers.values():
            worker._trouble = "it does not answer"
        agent.changed()
        await asyncio.sleep(0)  # what was to be chosen soon
        assert len(agent._tasks) == 0

    run(main())
