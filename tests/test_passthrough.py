"""Tunnelled connections that mitmproxy hands to the relay, in every mode that can."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct

import pytest
from mitmproxy import ctx, tcp
from mitmproxy.connection import Client, Server

from mitm import FakeBroker, Handler, answering, curl, proxy, read_head, service
from tunnel import run
from whip_addon.passthrough import Passed, Passthrough

NAME = "db1.testdom"
SPOKEN = b"SSH-2.0-first\r\n"


class Seen:
    """Fails the test by what mitmproxy would have recorded."""

    def __init__(self) -> None:
        self.flows: list[str] = []

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        self.flows.append("tcp")

    def request(self, flow: object) -> None:
        self.flows.append("http")


async def speaks_first_then_echoes(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(SPOKEN)
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def connected(port: int, mode: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if mode == "regular":
        writer.write(f"CONNECT {NAME}:5432 HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in await read_head(reader)
    elif mode == "socks5":
        name = NAME.encode()
        writer.write(b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name + struct.pack(">H", 5432))
        await reader.readexactly(2 + 10)
    return reader, writer


MODES = {"regular": "regular", "socks5": "socks5", "reverse": f"reverse:tcp://{NAME}:5432"}


@pytest.mark.parametrize("mode", MODES)
def test_both_directions_go_through_the_relay_and_end_separately(mode: str) -> None:
    async def main() -> None:
        async with (
            service(speaks_first_then_echoes) as port,
            proxy(
                broker := FakeBroker({NAME: port}),
                seen := Seen(),
                mode=[MODES[mode]],
                whip_passthrough=["*.testdom:5432"],
            ) as p,
        ):
            reader, writer = await connected(p.port, mode)
            assert await reader.readexactly(len(SPOKEN)) == SPOKEN
            data = os.urandom(2_000_000)
            writer.write(data)
            writer.write_eof()
            echoed = await reader.read()
            while more := await reader.read():
                echoed += more
            assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest()
            writer.close()
            assert not seen.flows
            while not broker.metrics.finished:
                await asyncio.sleep(0)
            assert broker.metrics.finished == [(0, "tcp", "")]

    run(main())


def test_what_the_client_sends_at_once_comes_first() -> None:
    async def main() -> None:
        async with (
            service(speaks_first_then_echoes) as port,
            proxy(FakeBroker({NAME: port}), whip_passthrough=[NAME]) as p,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(f"CONNECT {NAME}:5432 HTTP/1.1\r\n\r\n".encode() + b"eager ")
            assert b" 200 " in await read_head(reader)
            writer.write(b"bytes")
            writer.write_eof()
            assert (await reader.read()).replace(SPOKEN, b"") == b"eager bytes"
            writer.close()

    run(main())


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_at_the_moment_of_the_hand_over_is_neither_lost_nor_taken_for_the_end(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, done, handed_over = Passthrough._hand_over, False, asyncio.Event()

    def just_before(self: Passthrough, client: Client, server: Server, passed: Passed) -> bool:
        nonlocal done
        if not done:
            done = True
            [handler] = ctx.master.addons.get("proxyserver").connections.values()
            for end, data in ((client, b"from the client "), (server, b"from the service ")):
                handler.transports[end].writer.transport.get_protocol().data_received(data)
        if original(self, client, server, passed):
            handed_over.set()
        return handed_over.is_set()

    monkeypatch.setattr(Passthrough, "_hand_over", just_before)

    async def main() -> None:
        async with (
            asyncio.timeout(20),
            service(speaks_first_then_echoes) as port,
            proxy(FakeBroker({NAME: port}), mode=[MODES[mode]], whip_passthrough=[NAME]) as p,
        ):
            reader, writer = await connected(p.port, mode)
            come = b""
            while b"from the client " not in come:
                data = await reader.read(65536)
                assert data, come
                come += data
            assert sorted(come.split()) == sorted(
                SPOKEN.split() + b"from the service from the client".split()
            )
            await handed_over.wait()
            writer.write(b"goes on")
            writer.write_eof()
            assert await reader.read() == b"goes on"
            writer.close()

    run(main())


def test_a_host_that_matches_no_pattern_is_looked_into() -> None:
    async def main() -> None:
        async with (
            service(answering(b"hello")) as port,
            proxy(
                FakeBroker({"web.testdom": port}), seen := Seen(), whip_passthrough=["db*.testdom"]
            ) as p,
        ):
            done = await curl("--proxytunnel", "--proxy", p.url, "http://web.testdom/")
            assert (done.output, seen.flows) == ("hello", ["http"])

    run(main())


def reset_at_once() -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return handle


def test_a_reset_is_passed_on_as_a_reset() -> None:
    async def main() -> None:
        async with (
            service(reset_at_once()) as port,
            proxy(FakeBroker({NAME: port}), whip_passthrough=[NAME]) as p,
        ):
            reader, writer = await connected(p.port, "regular")
            writer.write(b"hello")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


@pytest.mark.parametrize("mode", ["socks5", "reverse"])
def test_a_client_whose_connection_is_refused_at_once_is_hung_up_on(mode: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), proxy(FakeBroker(), mode=[MODES[mode]]) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            if mode == "socks5":
                writer.write(b"\5\1\0\5\1\0\1" + socket.inet_aton("10.1.2.3") + b"\x15\x38")
            # Nothing more than the answers of SOCKS, if anything.
            assert NAME.encode() not in await reader.read()
            writer.close()

    run(main())


def test_a_dial_that_fails_is_answered_as_without_passthrough() -> None:
    async def main() -> None:
        async with proxy(FakeBroker(), whip_passthrough=["*"]) as p:
            done = await curl("--proxytunnel", "--proxy", p.url, "http://gone.testdom/")
            assert done.status != 0
            assert "502" in done.errors

    run(main())
