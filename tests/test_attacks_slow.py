"""Peers that are slow on purpose, on each port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mitm import FakeBroker, answering, curl, proxy
from mitm import service as http_service
from tunnel import broker_settings, run, scripted
from web import opened
from whip_core import Broker, control, control_socket, web
from whip_core.dial_address import DialAddress
from whip_core.monitor import pages, serving
from whip_core.routes import Routes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HEADERS_THAT_GO_ON = b"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82"
"""The beginning of an HTTP/2 request, without END_HEADERS."""
SOON = 0.3
"""Seconds that a slow peer gets here."""


async def trickle(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, octets: bytes
) -> None:
    """One octet now and then, each in good time, until the other end hangs up."""

    async def write() -> None:
        for octet in octets:
            writer.write(bytes([octet]))
            await asyncio.sleep(SOON / 5)

    writing = asyncio.get_running_loop().create_task(write())
    try:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1024):
                pass
        assert not writing.done() or writing.exception() is not None, "it was heard to its end"
    finally:
        writing.cancel()
        await asyncio.wait([writing])
        writer.close()


def test_a_preamble_that_trickles_in_is_given_up_in_the_time_of_one_that_stops() -> None:
    async def main() -> None:
        async with Broker(broker_settings(preamble_timeout=SOON)) as broker:
            streams = await asyncio.open_connection("127.0.0.1", broker.reverse_port)
            await trickle(*streams, b"{" + b" " * 1000)

    run(main())


def test_so_is_a_hello_at_the_dial_socket(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "dial.sock"
        settings = broker_settings(preamble_timeout=SOON, dial_listen=(DialAddress(path=path),))
        async with Broker(settings):
            streams = await asyncio.open_unix_connection(path)
            await trickle(*streams, b"\x01\x00\x03\xff" + b" " * 1000)

    run(main())


def test_a_tls_handshake_that_trickles_in_is_given_up_too() -> None:
    async def main() -> None:
        settings = broker_settings(
            tls=True,
            handshake_timeout=SOON,
            dial_listen=(DialAddress(host="127.0.0.1"),),
            dial_allow=("a.dialers",),
        )
        async with Broker(settings) as broker:
            dial_port = broker.dial_addresses[0].port
            for port in (broker.reverse_port, broker.control_port, dial_port):
                streams = await asyncio.open_connection("127.0.0.1", port)
                await trickle(
                    *streams, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(900)
                )

    run(main())


@pytest.mark.parametrize(
    "said",
    [b"", PREFACE[:10], PREFACE, PREFACE + SETTINGS, PREFACE + SETTINGS + HEADERS_THAT_GO_ON],
    ids=["nothing", "half a preface", "a preface", "no request", "half a request"],
)
def test_who_does_not_come_to_register_is_hung_up_on(said: bytes) -> None:
    async def main() -> None:
        async with Broker(broker_settings(handshake_timeout=SOON)) as broker:
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.control_port)
            writer.write(said)
            with contextlib.suppress(ConnectionError):
                while await reader.read(1024):
                    pass
            writer.close()
            async with scripted(broker) as agent:
                await agent.expect(control.Registered)

    run(main())


@contextlib.asynccontextmanager
async def web_server(folder: Path, where: str) -> AsyncIterator[str | Path]:
    routes = Routes(pages(lambda _: ("text/plain", b""), lambda: None))
    if where == "metrics":
        async with serving("127.0.0.1:0", routes, chosen=True) as address:
            assert address is not None
            yield address
        return
    path = folder / "control.sock"
    async with web.WebServer(routes) as server:
        server.listen(control_socket.bind(path, in_default_folder=False))
        yield path


@pytest.mark.parametrize("where", ["metrics", "control socket"])
def test_a_request_that_trickles_in_is_given_up(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "HEAD_TIMEOUT", SOON)

    async def main() -> None:
        async with web_server(tmp_path, where) as address:
            await trickle(*await opened(address), b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 1000)
            body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
            reader, writer = await opened(address)
            writer.write(body)
            await trickle(reader, writer, b"x" * 100)

    run(main())


def test_slow_clients_and_slow_services_of_the_proxy_delay_nobody() -> None:
    never = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await never.wait()

    async def main() -> None:
        async with http_service(silent) as mute, http_service(answering(b"ok")) as port:
            broker = FakeBroker({"mute.testdom": mute, "a.testdom": port})
            async with proxy(broker) as p:
                held = []
                unanswered = b"GET http://mute.testdom/ HTTP/1.1\r\n\r\n"
                for said in (b"", b"GET http://a.testdom/ HT", unanswered):
                    for _ in range(30):
                        streams = await asyncio.open_connection("127.0.0.1", p.port)
                        streams[1].write(said)
                        held.append(streams)
                assert (await curl("--proxy", p.url, "http://a.testdom/")).output == "ok"
                for _, writer in held:
                    writer.transport.abort()
                never.set()

    run(main())
