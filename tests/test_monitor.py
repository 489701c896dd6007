"""The metrics port of broker and agent: where it listens, health, and what it is bounded by."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tunnel import agent_settings, broker_settings, run, running
from web import ask, opened
from whip_core import Broker, web
from whip_core.errors import SettingsError
from whip_core.metrics import BrokerMetrics, exposition
from whip_core.monitor import pages, serving
from whip_core.routes import Request, Response, Routes
from whip_core.status import Status


def site(not_ready: str | None = None) -> Routes:
    registry = BrokerMetrics().registry
    return Routes(pages(lambda accept: exposition(registry, accept), lambda: not_ready))


@asynccontextmanager
async def served(routes: Routes | None = None) -> AsyncIterator[str]:
    async with serving("127.0.0.1:0", routes or site(), chosen=True) as address:
        assert address is not None
        yield address


# Where it listens


def test_an_empty_address_serves_nothing() -> None:
    async def main() -> None:
        async with serving("", site(), chosen=True) as address:
            assert address is None

    run(main())


def test_without_a_host_it_is_served_on_loopback() -> None:
    async def main() -> None:
        async with serving(":0", site(), chosen=True) as address:
            assert address is not None
            assert address.startswith("127.0.0.1:")

    run(main())


@pytest.mark.parametrize("listen", ["localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
def test_an_address_that_is_none_is_told_in_one_line(listen: str) -> None:
    async def main() -> None:
        async with serving(listen, site(), chosen=True):
            pass

    with pytest.raises(SettingsError, match=r"--metrics-listen .* is not HOST:PORT") as raised:
        run(main())
    assert "\n" not in str(raised.value)


def test_a_port_in_use_is_an_error_if_it_was_chosen_and_else_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(listen: str, chosen: bool) -> None:
        async with serving(listen, site(), chosen=chosen) as address:
            assert address is None

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match="choose another --metrics-listen"):
            run(main(listen, True))
        with caplog.at_level(logging.WARNING):
            run(main(listen, False))
        assert f"cannot serve metrics at {listen}" in caplog.text


# Health


def test_healthy_is_who_answers_and_ready_who_can_do_its_work() -> None:
    async def main() -> None:
        async with served(site("registered at no broker")) as address:
            assert (await ask(address, "/healthz")).status == 200
            answered = await ask(address, "/readyz")
            assert (answered.status, answered.text) == (503, "not ready: registered at no broker\n")
        async with served() as address:
            assert (await ask(address, "/readyz")).status == 200

    run(main())


def test_an_agent_is_ready_while_it_is_registered_at_one_broker_at_least() -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports="80")) as agent,
        ):
            assert agent.why_not_ready() == "registered at no broker"
            await agent.wait_registered()
            assert agent.why_not_ready() is None
            agent.stop()
            assert agent.why_not_ready() == "stopping"

    run(main())


def test_a_broker_is_ready_while_it_listens() -> None:
    async def main() -> None:
        broker = Broker(broker_settings())
        async with served(Status(broker).routes()) as address:
            assert (await ask(address, "/readyz")).status == 503
            async with broker:
                assert (await ask(address, "/readyz")).status == 200
                broker.begin_drain()
                assert (await ask(address, "/readyz")).text == "not ready: draining\n"
            answered = await ask(address, "/readyz")
            assert (answered.status, answered.text) == (
                503,
                "not ready: the broker does not listen\n",
            )

    run(main())


# What is asked wrong


@pytest.mark.parametrize(
    ("method", "target", "status", "said"),
    [
        ("GET", "/nowhere", 404, "there is nothing at /nowhere; there is /metrics"),
        ("GET", "/\x7f%1b%5b2J", 400, ""),
        ("GET", "/%1b%5b2J", 404, "there is nothing at /?[2J"),
        ("POST", "/metrics", 405, "POST is not for this"),
        ("DELETE", "/metrics", 405, "DELETE is not for this"),
        ("GET", "//[", 400, "not a URL"),
        ("GET", "/metrics?a=1&a=2", 400, "an argument is given twice"),
        ("GET", "/metrics?" + "&".join(f"a{n}" for n in range(40)), 400, "not a URL: Max"),
    ],
)
def test_a_wrong_request_is_answered_with_a_reason(
    method: str, target: str, status: int, said: str
) -> None:
    async def main() -> None:
        async with served() as address:
            reader, writer = await opened(address)
            writer.write(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} ".encode())
            assert said in (await reader.readuntil(b"}")).decode()
            writer.close()

    run(main())


@pytest.mark.parametrize(
    "octets",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 20_000,
        b"\x00" * 20_000,
    ],
)
def test_what_is_no_request_or_too_much_is_refused_and_hung_up_on(octets: bytes) -> None:
    async def main() -> None:
        async with served() as address:
            reader, writer = await opened(address)
            writer.write(octets)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head[:10] == b"HTTP/1.1 4"
            assert b"connection: close" in head.lower()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                while True:
                    await reader.readexactly(1)
            writer.close()

    run(main())


# What it does well


def test_requests_follow_each_other_on_a_connection_and_long_answers_are_packed() -> None:
    async def main() -> None:
        async with served() as address:
            streams = await opened(address)
            plain = await ask(address, "/metrics", streams=streams)
            packed = await ask(address, "/metrics", streams=streams, Accept_Encoding="gzip")
            head = await ask(address, "/metrics", streams=streams, method="HEAD")
            assert packed.headers["content-encoding"] == "gzip"
            assert gzip.decompress(packed.body) == plain.body
            assert head.body == b""
            assert head.headers["content-length"] == plain.headers["content-length"]
            assert plain.headers["content-type"].startswith("text/plain; version=")
            asked_for = await ask(
                address, "/metrics", streams=streams, Accept="application/openmetrics-text"
            )
            assert asked_for.headers["content-type"].startswith("application/openmetrics-text")
            streams[1].close()

    run(main())


def test_silent_clients_make_room_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 4)

    async def main() -> None:
        async with served() as address:
            silent = [await opened(address) for _ in range(12)]
            assert (await ask(address, "/healthz")).status == 200
            assert await silent[0][0].read() == b""  # the one that was silent the longest
            for _, writer in silent:
                writer.close()

    run(main())


def test_who_is_one_too_many_while_all_are_busy_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 1)
    asked = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        yield b"first"
        asked.set()
        await asyncio.Event().wait()

    async def main() -> None:
        async with served(Routes({"/": lambda _: Response(endless(), is_endless=True)})) as address:
            _, writer = await opened(address)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asked.wait()
            reader2, writer2 = await opened(address)
            assert (await reader2.readuntil(b"\r\n")).startswith(b"HTTP/1.1 503 ")
            for each in (writer, writer2):
                each.close()

    run(main())


@pytest.mark.parametrize("timeout", ["HEAD_TIMEOUT", "IDLE_TIMEOUT"])
def test_a_client_that_does_not_go_on_is_hung_up_on(
    timeout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, timeout, 0.01)

    async def main() -> None:
        async with served() as address:
            reader, writer = await opened(address)
            if timeout == "HEAD_TIMEOUT":
                writer.write(b"GET / HT")
            else:
                await ask(address, "/healthz", streams=(reader, writer))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(1)
            writer.close()

    run(main())


def test_a_listener_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "WRITE_TIMEOUT", 0.05)
    dropped = asyncio.Event()

    async def flood() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            dropped.set()

    async def main() -> None:
        async with served(Routes({"/": lambda _: Response(flood(), is_endless=True)})) as address:
            _, writer = await opened(address)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await dropped.wait()
            writer.close()

    run(main())


def test_a_listener_that_goes_is_noticed_before_there_is_anything_to_tell() -> None:
    gone = asyncio.Event()

    async def quiet() -> AsyncGenerator[bytes, None]:
        yield b"first"
        try:
            await asyncio.sleep(3600)
        finally:
            gone.set()

    async def main() -> None:
        async with served(Routes({"/": lambda _: Response(quiet(), is_endless=True)})) as address:
            reader, writer = await opened(address)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"first")
            writer.close()
            await gone.wait()

    run(main())


def test_an_answer_that_fails_is_told_to_the_client_and_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: Request) -> Response:
        raise RuntimeError("a bug")

    async def main() -> None:
        async with served(Routes({"/": broken})) as address:
            assert (await ask(address, "/")).status == 500

    run(main(), logs_errors=True)
    assert "a bug" in caplog.text
