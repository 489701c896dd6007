"""Brokers and NATS are restarted one after the other while requests go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from client_agent import backoff
from fabrics import Nats, eventually
from processes import free_ports
from programs import needs_program
from tunnel import agent_settings, broker_settings, echo, exchange, run, running, service
from whip_core import Broker, fabric_nats
from whip_core.errors import DialError
from whip_core.fabric_nats import NatsFabric

pytestmark = needs_program("nats-server")
WORKERS = 4


async def heard_of(broker: Broker) -> None:
    """Wait until NATS knows that the broker holds the agent, so that the other may go."""
    assert broker._registrar.neighbours is not None
    fabric = broker._registrar.neighbours._mail.fabric
    assert isinstance(fabric, NatsFabric)
    await eventually(lambda: "agent.instance1.testdom" in fabric._held)
    await fabric._client.flush()


class Load:
    """Requests to one name, one after the other in each of some workers."""

    def __init__(self, broker: Broker) -> None:
        self.done = 0
        self.failed: list[str] = []
        self._broker = broker
        self._news = asyncio.Event()

    async def work(self) -> None:
        while True:
            try:
                streams = await self._broker.open_connection("instance1.testdom", 80, wait=10)
                assert await exchange(streams, b"hello") == b"hello"
                self.done += 1
            except (DialError, OSError, AssertionError) as error:
                self.failed.append(repr(error))
            self._news.set()
            self._news = asyncio.Event()

    async def more(self, count: int = 50) -> None:
        """Wait until some more requests were answered."""
        wanted = self.done + count
        while self.done < wanted and not self.failed:
            await self._news.wait()
        assert not self.failed, self.failed[:3]


@asynccontextmanager
async def under_load(broker: Broker) -> AsyncIterator[Load]:
    load = Load(broker)
    loop = asyncio.get_running_loop()
    workers = [loop.create_task(load.work()) for _ in range(WORKERS)]
    try:
        await load.more()
        yield load
        await load.more()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent comes back over seconds on purpose, and over more the longer its broker is away."""
    monkeypatch.setattr(backoff, "RETURN_BOUND", 0.1)
    monkeypatch.setattr(backoff, "GROWTH", 1.0)
    monkeypatch.setattr(fabric_nats, "RECONNECT_WAIT", 0.1)


@pytest.mark.usefixtures("soon")
def test_no_request_fails_while_holders_and_nats_are_restarted() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            nats = Nats(stack)
            await nats.up()
            ports = free_ports(2)
            settings = [
                broker_settings(fabric=nats.settings, grpc_listen_port=port) for port in ports
            ]
            holders = [Broker(each) for each in settings]
            dialling = await stack.enter_async_context(
                Broker(broker_settings(fabric=nats.settings))
            )
            for holder in holders:
                await holder.__aenter__()
            try:
                async with (
                    service(echo) as port,
                    running(agent_settings(*ports, ports=f"80={port}")),
                ):
                    await eventually(lambda: all(holder.agents for holder in holders))
                    async with under_load(dialling) as load:
                        for number, each in enumerate(settings):
                            await holders[number].__aexit__(None, None, None)
                            await load.more()
                            holders[number] = Broker(each)
                            await holders[number].__aenter__()
                            restarted = holders[number]
                            await eventually(lambda broker=restarted: broker.agents)
                            await heard_of(restarted)
                            await load.more()
                        await nats.down()
                        await load.more()
                        await nats.up()
                        await load.more()
            finally:
                for holder in holders:
                    await holder.__aexit__(None, None, None)

    run(main())
