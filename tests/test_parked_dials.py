"""Parked connections from the outside: a real broker and a real agent, over mutual TLS."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    service,
    until,
)
from whip_core import Broker, parked_pool
from whip_core.errors import StreamCut, StreamReset
from whip_core.framed import FramedConnection

TARGET = ("instance1.testdom", 80)


@asynccontextmanager
async def tunnel(handler: Any = echo) -> Any:
    """A broker with one agent before a service; gives the broker, its watch, the agent."""
    watch = Watch()
    async with (
        service(handler) as port,
        Broker(broker_settings(tls=True), plugins=[watch]) as broker,
        running(
            agent_settings(broker.control_port, ports=f"80={port}", tls=client_files())
        ) as agent,
    ):
        await watch.until(lambda: bool(watch.joined))
        await until(lambda: broker.agents[0].parked >= 1)
        yield broker, watch, agent


def connections(broker: Broker) -> list[FramedConnection]:
    (session,) = broker._registrar.registry
    return list(session.pool._connections)


def test_a_connection_is_parked_at_once_and_the_first_dial_uses_it() -> None:
    async def main() -> None:
        async with tunnel() as (broker, watch, _):
            assert await exchange(await broker.open_connection(*TARGET), b"hello") == b"hello"
            assert watch.dials[0].parked

    run(main())


def test_when_both_directions_have_ended_the_same_connection_serves_the_next_dial() -> None:
    async def main() -> None:
        async with tunnel() as (broker, watch, _):
            (parked,) = connections(broker)
            for number in range(5):
                text = b"%d" % number * 1000
                assert await exchange(await broker.open_connection(*TARGET), text) == text
                await until(lambda: parked in connections(broker))
            assert all(dial.parked for dial in watch.dials)

    run(main())


def test_two_hundred_dials_at_once_all_succeed_and_raise_what_is_kept() -> None:
    async def main() -> None:
        async with tunnel() as (broker, watch, _):

            async def one(number: int) -> None:
                text = b"%d." % number * 500
                assert await exchange(await broker.open_connection(*TARGET), text) == text

            await asyncio.gather(*map(one, range(200)))
            assert len([dial for dial in watch.dials if dial.error is None]) == 200
            (session,) = broker._registrar.registry
            assert session.pool._demand.target > 1

    run(main())


def test_a_parked_connection_that_died_unnoticed_is_a_fallback_not_an_error() -> None:
    async def main() -> None:
        async with tunnel() as (broker, watch, _):
            (parked,) = connections(broker)
            parked.transport.abort()  # `connection_lost` comes later: it looks alive still
            assert parked.is_parked
            assert await exchange(await broker.open_connection(*TARGET), b"hello") == b"hello"
            assert not watch.dials[0].parked

    run(main())


def test_a_draining_agent_has_its_parked_connections_closed_at_once() -> None:
    async def main() -> None:
        async with tunnel() as (broker, watch, agent):
            (parked,) = connections(broker)
            agent.stop()
            await until(lambda: parked.lost)
            await watch.until(lambda: bool(watch.left))

    run(main())


def test_an_agent_that_is_gone_leaves_no_connection_at_the_broker() -> None:
    async def main() -> None:
        async with service(echo) as port, Broker(broker_settings(tls=True)) as broker:
            settings = agent_settings(broker.control_port, ports=f"80={port}", tls=client_files())
            async with running(settings) as agent:
                await agent.wait_registered()
                await until(lambda: bool(broker.agents and broker.agents[0].parked))
                (parked,) = connections(broker)
            await until(lambda: parked.lost and not broker.agents)

    run(main())


@pytest.mark.parametrize("how", ["reset", "cut"])
def test_a_stream_that_broke_takes_its_connection_with_it(how: str) -> None:
    async def main() -> None:
        async with tunnel() as (broker, _, __):
            (parked,) = connections(broker)
            reader, writer = await broker.open_connection(*TARGET)
            if how == "reset":
                writer.transport.abort()
            else:
                parked.transport.abort()
                with pytest.raises((StreamCut, StreamReset)):
                    await reader.read()
            await until(lambda: parked.lost)
            assert parked not in connections(broker)
            assert await exchange(await broker.open_connection(*TARGET), b"next") == b"next"

    run(main())


def test_idle_connections_are_closed_when_demand_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parked_pool, "WINDOW", 0.05)

    async def main() -> None:
        async with tunnel() as (broker, _, __):
            streams = await asyncio.gather(*(broker.open_connection(*TARGET) for _ in range(20)))
            await asyncio.gather(*(exchange(stream, b"x") for stream in streams))
            await until(lambda: broker.agents[0].parked == 1)

    run(main())
