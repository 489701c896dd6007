"""Brokers and NATS are restarted one after the other while requests go on: real processes.

In the order of docs/brokers.md: a broker goes when the one before it has its agents again.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fabrics import Nats
from mitm import answering, confdir, read_head, service
from processes import Process, free_ports, started
from programs import needs_program
from tunnel import run

pytestmark = [needs_program("nats-server"), pytest.mark.once, pytest.mark.long]

PATIENCE = 120.0
"""Seconds for eight starts of Python and an agent that comes back over seconds on purpose, on a
machine that has other work; alone, a tenth."""
QUIET = ("--tls=false", "--metrics-listen=", "--control-socket=")
BODY = b"hello"
REGISTERED = "registered instance1.testdom at the broker "
ENOUGH = 10
"""Requests of each kind that have to be answered between two events."""


class Load:
    """Clients of a proxy: some keep their connection, some come anew for each request."""

    def __init__(self, proxy: int) -> None:
        self._proxy = proxy
        self.done = {True: 0, False: 0}
        self.failed: list[str] = []
        self._news = asyncio.Event()

    async def work(self, keep_alive: bool) -> None:
        while True:
            try:
                await self._client(keep_alive)
            except (OSError, EOFError) as error:
                self._tell(f"{type(error).__name__}: {error}")

    async def _client(self, keep_alive: bool) -> None:
        """Requests on one connection, until the proxy says that it ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._proxy)
        try:
            while True:
                writer.write(
                    b"GET http://instance1.testdom/ HTTP/1.1\r\nHost: instance1.testdom\r\n"
                )
                writer.write(b"\r\n" if keep_alive else b"Connection: close\r\n\r\n")
                head = (await read_head(reader)).lower()
                body = await reader.readexactly(_length(head))
                if not head.startswith(b"http/1.1 200") or body != BODY:
                    self._tell(f"{head.splitlines()[0]!r}: {body[:200]!r}")
                    return
                self.done[keep_alive] += 1
                self._tell(None)
                if not keep_alive or b"connection: close" in head:
                    return
        finally:
            writer.close()

    def _tell(self, failure: str | None) -> None:
        if failure is not None:
            self.failed.append(failure)
        self._news.set()
        self._news = asyncio.Event()

    async def more(self, count: int = ENOUGH) -> None:
        """Wait until some more requests of each kind were answered, and none failed."""
        wanted = {kind: done + count for kind, done in self.done.items()}
        while any(self.done[kind] < wanted[kind] for kind in wanted) and not self.failed:
            await self._news.wait()
        assert not self.failed, self.failed[:3]


def _length(head: bytes) -> int:
    [value] = [line for line in head.splitlines() if line.startswith(b"content-length:")]
    return int(value.partition(b":")[2])


@asynccontextmanager
async def under_load(proxy: int) -> AsyncIterator[Load]:
    load = Load(proxy)
    loop = asyncio.get_running_loop()
    workers = [loop.create_task(load.work(kind)) for kind in (True, True, False, False)]
    try:
        await load.more()
        yield load
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)


class Brokers:
    """`whip broker` three times: the first has the proxy, the others hold the agent."""

    def __init__(self, stack: AsyncExitStack, nats: Nats, folder: Path) -> None:
        self.socket = folder / "dial.sock"
        self._stack = stack
        self._nats = nats
        self._folder = folder
        self._ports = free_ports(6)
        self._running: dict[int, Process] = {}

    def address(self, number: int) -> str:
        """Where agents register."""
        return f"127.0.0.1:{self._ports[2 * number]}"

    async def start(self, number: int) -> None:
        control, reverse = self._ports[2 * number : 2 * number + 2]
        socket = self.socket if number == 0 else self._folder / f"{number}.sock"
        self._running[number] = await self._stack.enter_async_context(
            started(
                *("whip", "broker", *QUIET, "--whip-external-tcp-address=localhost"),
                *(f"--whip-grpc-listen-port={control}", f"--whip-tcp-listen-port={reverse}"),
                *(f"--dial-listen=unix:{socket}", f"--fabric={self._nats.settings.url}"),
            )
        )
        await self._running[number].says("agents register at port")

    async def stop(self, number: int, by: signal.Signals = signal.SIGTERM) -> None:
        self._running[number].signal(by)
        await self._running[number].ended()


def test_no_request_fails_while_brokers_and_nats_are_restarted(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            nats = Nats(stack)
            await nats.up()
            brokers = Brokers(stack, nats, tmp_path)
            await asyncio.gather(*map(brokers.start, range(3)))
            holders = [brokers.address(1), brokers.address(2)]
            port = await stack.enter_async_context(service(answering(BODY)))
            agent = await stack.enter_async_context(
                started(
                    *("whip", "client", "--tls=false", "--metrics-listen=", *holders),
                    *("--hostname=instance1", "--domain=testdom", f"--ports=80={port}"),
                )
            )
            [listen] = free_ports(1)
            proxy = await stack.enter_async_context(
                started(
                    *("whip", "proxy", f"--broker=unix:{brokers.socket}", "--wait=30", *QUIET),
                    *(f"--proxy-listen-port={listen}", "--", "--set", f"confdir={confdir()}"),
                )
            )
            for holder in holders:
                await agent.says(REGISTERED + holder)
            await proxy.says("proxy listening")
            async with under_load(listen) as load:
                await brokers.stop(0)
                await brokers.start(0)
                await load.more()

                await nats.down()
                await load.more()
                await nats.up()
                await load.more()

                await brokers.stop(1)
                await load.more()
                await brokers.start(1)
                await agent.says_often(REGISTERED + brokers.address(1), 2)

                await brokers.stop(2, signal.SIGKILL)
                await load.more()
                await brokers.start(2)
                await load.more()

    run(main(), patience=PATIENCE)
