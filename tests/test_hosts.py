"""All-to-all on hosts of their own: every agent at every broker that DNS names."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dns_server import DNSServer, Mood
from namespaces import Host, Network, needs_namespaces, network
from processes import Process, started
from programs import needs_program
from tunnel import authority, client_files, echo, exchange, run, server_files, until
from whip_core import connect
from whip_core.remote import RemoteBroker
from whip_core.settings import TLSFiles

pytestmark = [needs_program("ip"), needs_namespaces]

NAME = "brokers.test"
TTL = 1
JOINED_WITHIN = TTL + 5.0
"""Seconds after which a broker that appeared in DNS has to be registered at."""


def tls(files: TLSFiles) -> tuple[str, ...]:
    return (
        f"--tls-key-path={files.key}",
        f"--tls-cert-path={files.cert}",
        f"--tls-ca-cert-path={files.ca}",
    )


@dataclass
class Broker:
    host: Host
    process: Process
    remote: RemoteBroker

    def has(self, *names: str) -> bool:
        return {view.name.hostname for view in self.remote.agents} == set(names)

    async def reaches(self, hostname: str) -> bool:
        streams = await self.remote.open_connection(f"{hostname}.testdom", 80)
        return await exchange(streams, b"hello") == b"hello"


@dataclass
class World:
    """A network with a DNS server on its first host, and what runs on the others."""

    net: Network
    dns: DNSServer
    folder: Path
    stack: AsyncExitStack
    brokers: list[Broker] = field(default_factory=list)

    async def broker(self) -> Broker:
        """Start one; DNS knows nothing of it so far."""
        host = self.net.host()
        path = self.folder / f"{host.ip4}.sock"
        process = await self.stack.enter_async_context(
            started(
                *(*host.command("whip"), "broker", f"--dial-listen={path}", "--metrics-listen="),
                *(
                    f"--whip-external-tcp-address={host.ip4}",
                    *tls(server_files(NAME, "other.test")),
                ),
            )
        )
        await process.says("agents register at port")
        remote = await self.stack.enter_async_context(await connect(f"unix:{path}"))
        self.brokers.append(Broker(host, process, remote))
        return self.brokers[-1]

    async def agent(self, hostname: str, *endpoints: str) -> Process:
        """Start one with an echo service beside it."""
        host = self.net.host()
        sock = host.socket(socket.SOCK_STREAM, "127.0.0.1", 5051)
        server = await asyncio.start_server(echo_and_end, sock=sock)
        self.stack.callback(server.close)
        return await self.stack.enter_async_context(
            started(
                *(*host.command("whip"), "client", f"--hostname={hostname}", "--domain=testdom"),
                *("--ports=80=5051", "--metrics-listen=", *tls(client_files())),
                *endpoints,
            )
        )

    def tell(self, *brokers: Broker, name: str = NAME) -> None:
        """Have DNS give these brokers' addresses, of both families."""
        self.dns.set(name, "A", *(broker.host.ip4 for broker in brokers), ttl=TTL)
        self.dns.set(name, "AAAA", *(broker.host.ip6 for broker in brokers), ttl=TTL)

    async def asked_again(self, question: str) -> None:
        before = self.dns.questions.count(question)
        await until(lambda: self.dns.questions.count(question) >= before + 2)


async def echo_and_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await echo(reader, writer)
    writer.close()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    authority()
    with network() as net:
        nameserver = net.host()
        assert nameserver.ip4 == net.nameserver
        sock = nameserver.socket(socket.SOCK_DGRAM, nameserver.ip4, 53)
        async with DNSServer(sock) as dns, AsyncExitStack() as stack:
            yield World(net, dns, folder, stack)


def test_every_agent_is_at_every_broker_once_and_follows_the_records(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            one, two, three = [await here.broker() for _ in range(3)]
            here.tell(one, two)
            here.tell(one, name="other.test")
            here.dns.set("_whip._tcp.brokers.test", "SRV", "0 0 50051 brokers.test.", ttl=TTL)
            first = await here.agent("instance1", "brokers.test:50051", "other.test:50051")
            second = await here.agent("instance2", "srv:_whip._tcp.brokers.test")
            for broker in (one, two):
                await until(lambda broker=broker: broker.has("instance1", "instance2"))
                assert await broker.reaches("instance1")
                assert await broker.reaches("instance2")
            for agent in (first, second):  # each broker has two addresses, one two names
                await agent.says("a broker that we are registered at already")

            here.tell(one, two, three)
            async with asyncio.timeout(JOINED_WITHIN):
                await until(lambda: three.has("instance1", "instance2"))
            assert await three.reaches("instance1")

            reader, writer = await two.remote.open_connection("instance1.testdom", 80)
            here.tell(one, three)
            await first.says("its name has another address now")
            await until(lambda: two.has("instance1"))  # only the one with a stream stays
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            writer.close()
            await writer.wait_closed()
            await until(lambda: two.has())
            for broker in (one, three):
                assert broker.has("instance1", "instance2")
                assert len(broker.remote.agents) == 2

    run(main(), patience=25)


@pytest.mark.parametrize("mood", ["NXDOMAIN", "SERVFAIL", "SILENCE", "EMPTY"])
def test_a_resolver_that_fails_changes_nothing(mood: Mood, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            broker = await here.broker()
            here.tell(broker)
            await here.agent("instance1", "brokers.test:50051")
            await until(lambda: broker.has("instance1"))
            for kind in ("A", "AAAA"):
                here.dns.fail(NAME, kind, mood)
            await here.asked_again("brokers.test A")
            assert broker.has("instance1")
            assert await broker.reaches("instance1")
            here.dns.heal()
            second = await here.broker()
            here.tell(broker, second)
            async with asyncio.timeout(JOINED_WITHIN + 5):  # the resolver's time-out, once more
                await until(lambda: second.has("instance1"))

    run(main(), patience=25)


def test_a_broker_whose_certificate_is_for_another_name_gets_no_agent(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            broker = await here.broker()
            here.tell(broker)
            here.tell(broker, name="wrong.test")
            agent = await here.agent("instance1", "wrong.test:50051")
            await agent.says("for other names, not for wrong.test")
            assert broker.has()

    run(main())
