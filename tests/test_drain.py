"""Stopping without loss: SIGTERM to proxies, forwards and agents while they are used."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from processes import Process, free_ports, started
from tunnel import (
    Log,
    agent_settings,
    broker_settings,
    echo,
    registration,
    run,
    running,
    scripted,
    service,
    until,
)
from whip_core import Broker, control
from whip_core.testing.agent import ControlStreamEnded

WORKERS = 6
"""Clients at once, each with one connection that it keeps alive as long as it may."""


# The broker itself


def test_a_broker_that_drains_tells_its_agents_takes_no_more_and_waits_for_its_streams() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            scripted(broker, registration("scripted")) as told,
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
            broker.forward("instance1.testdom", 80) as address,
        ):
            await agent.wait_registered()
            await told.expect(control.Registered)
            assert address is not None
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"

            drained = asyncio.get_running_loop().create_task(broker.drain(60))
            assert await told.expect(control.Draining)
            async with scripted(broker, registration("late")) as late:
                with pytest.raises(ControlStreamEnded) as raised:
                    await late.expect(control.Registered)
                assert raised.value.status == "UNAVAILABLE"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
            writer.write(b"behind")
            assert await reader.readexactly(6) == b"behind"
            assert not drained.done()
            writer.close()
            await drained

    run(main())


def test_streams_that_do_not_finish_in_time_are_told_of() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            _, writer = await broker.open_connection("instance1.testdom", 80)
            with Log() as log:
                await broker.drain(0.01)
                assert log.having("some streams did not finish within 0.01 s")
            writer.transport.abort()

    run(main())


# Commands


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A web service that takes a moment, and keeps connections alive."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        await asyncio.sleep(0.02 if b"/slow" not in head else 0.5)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()


class Instances:
    """Two proxies with a broker each, two agents at both, and a service."""

    def __init__(self, stack: AsyncExitStack, service_port: int) -> None:
        self._stack = stack
        self._service_port = service_port
        self.proxy_ports = free_ports(2)
        self._control_ports = free_ports(2)
        self._reverse_ports = free_ports(2)

    async def proxy(self, number: int) -> Process:
        process = await self._stack.enter_async_context(
            started(
                "whip",
                "proxy",
                f"--proxy-listen-port={self.proxy_ports[number]}",
                f"--whip-grpc-listen-port={self._control_ports[number]}",
                f"--whip-tcp-listen-port={self._reverse_ports[number]}",
                *("--whip-external-tcp-address=localhost", "--tls=false", "--metrics-listen="),
                "--wait=30",
            )
        )
        await process.says("HTTP(S) proxy listening")
        return process

    async def agent(self, name: str) -> Process:
        return await self._stack.enter_async_context(
            started(
                "whip",
                "client",
                *(f"--hostname={name}", "--domain=testdom", f"--ports=80={self._service_port}"),
                *("--tls=false", "--metrics-listen="),
                *(f"127.0.0.1:{port}" for port in self._control_ports),
            )
        )

    async def registered(self, agent: Process, number: int, times: int = 1) -> None:
        """Wait until `agent` has been let in `times` times by the broker of that number."""
        text = f"at the broker 127.0.0.1:{self._control_ports[number]}"
        await agent.says_often(text, times)


@asynccontextmanager
async def instances() -> AsyncIterator[Instances]:
    async with service(answer) as port, AsyncExitStack() as stack:
        yield Instances(stack, port)


class Load:
    """Steady requests; what was not answered right is in `lost`."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self.answered = 0
        self.lost: list[str] = []
        self.over = False

    async def work(self, number: int) -> None:
        while not self.over:
            number += 1
            try:
                streams = await asyncio.open_connection(
                    "127.0.0.1", self._ports[number % len(self._ports)]
                )
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            try:
                await self._converse(*streams)
            finally:
                streams[1].close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            writer.write(b"GET http://testdom/ HTTP/1.1\r\nHost: testdom\r\n\r\n")
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(2 if b" 200 " in head else 0)
            except (asyncio.IncompleteReadError, OSError) as error:
                self.lost.append(repr(error))
                return
            if body != b"ok":
                self.lost.append(repr(head + await reader.read(4096)))
                return
            self.answered += 1
            if b"connection: close" in head.lower() or self.over:
                return

    async def more(self, count: int) -> None:
        """Wait until `count` more requests have been answered."""
        aim = self.answered + count
        await until(lambda: self.answered >= aim or self.lost)


@pytest.mark.timeout(180)
def test_a_rolling_restart_of_brokers_and_agents_under_load_loses_no_request() -> None:
    async def main() -> None:
        async with instances() as all_of_it:
            proxies = [await all_of_it.proxy(number) for number in range(2)]
            agents = {name: await all_of_it.agent(name) for name in "ab"}
            for agent in agents.values():
                for number in range(2):
                    await all_of_it.registered(agent, number)
            load = Load(all_of_it.proxy_ports)
            async with asyncio.TaskGroup() as group:
                for number in range(WORKERS):
                    group.create_task(load.work(number))
                await load.more(100)
                for name in "ab":
                    agents[name].signal(signal.SIGTERM)
                    assert await agents[name].ended() == 0, str(agents[name])
                    await load.more(50)
                    agents[name] = await all_of_it.agent(name)
                    for number in range(2):
                        await all_of_it.registered(agents[name], number)
                    await load.more(50)
                for number in range(2):
                    proxies[number].signal(signal.SIGTERM)
                    assert await proxies[number].ended() == 0, str(proxies[number])
                    await load.more(50)
                    proxies[number] = await all_of_it.proxy(number)
                    for agent in agents.values():
                        await all_of_it.registered(agent, number, 2)
                    await load.more(50)
                load.over = True
            assert load.lost == []

    run(main(), patience=160)  # eight programs are started one after the other


def test_a_proxy_that_stops_answers_what_it_was_asked_and_takes_no_more() -> None:
    async def main() -> None:
        async with instances() as all_of_it:
            proxy = await all_of_it.proxy(0)
            agent = await all_of_it.agent("a")
            await all_of_it.registered(agent, 0)
            port = all_of_it.proxy_ports[0]
            slow, idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            slow[1].write(b"GET http://testdom/slow HTTP/1.1\r\nHost: testdom\r\n\r\n")
            idle[1].write(b"GET http://testdom/ HTTP/1.1\r\nHost: testdom\r\n\r\n")
            assert await idle[0].readuntil(b"\r\n\r\nok")
            proxy.signal(signal.SIGTERM)
            await proxy.says("stopping: requests have 30 s to finish")
            await agent.says("the broker takes no more agents: the broker is stopping")
            head = await slow[0].readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            assert b"connection: close" in head.lower()
            assert await slow[0].read() == b"ok"
            assert await idle[0].read() == b""
            assert await proxy.ended() == 0, str(proxy)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            for _, writer in (slow, idle):
                writer.close()

    run(main())


def test_a_second_sigterm_ends_a_proxy_at_once() -> None:
    async def main() -> None:
        async with instances() as all_of_it:
            proxy = await all_of_it.proxy(0)
            agent = await all_of_it.agent("a")
            await all_of_it.registered(agent, 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", all_of_it.proxy_ports[0])
            # A tunnel that nobody says anything in is not idle: it may be anything.
            writer.write(b"CONNECT testdom:80 HTTP/1.1\r\nHost: testdom\r\n\r\n")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            proxy.signal(signal.SIGTERM)
            await proxy.says("stopping")
            assert await proxy.insisted() == 0
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    run(main())
