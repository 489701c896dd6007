"""httpx and aiohttp over a broker, against real servers behind real agents."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import aiohttp
import httpx
import pytest

from processes import free_ports, started
from programs import needs_program
from tunnel import Watch, agent_settings, authority, broker_settings, run, running, service
from whip_core import Broker, connect
from whip_core.aiohttp import WhipConnector
from whip_core.dial_address import DialAddress
from whip_core.dials import Dials
from whip_core.errors import DialError, DialTimeout, UnknownName
from whip_core.httpx import WhipTransport

WEB, TLS = "web.testdom", "tls.testdom"
LARGE = 3 * 1024 * 1024

pytestmark = needs_program("nginx")


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[tuple[int, int]]:
    """One that answers in the clear, and over TLS with HTTP/2; gives its two ports."""
    plain, tls = free_ports(2)
    (folder / "small").write_text("It works.")
    (folder / "large").write_bytes(bytes(LARGE))
    files = authority().server_files([TLS])
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(f"""
        {"user root;" if os.geteuid() == 0 else ""}
        daemon off;
        pid {folder}/nginx.pid;
        error_log stderr notice;
        events {{ worker_connections 1024; }}
        http {{
            {temporary}
            access_log off;
            root {folder};
            server {{ listen 127.0.0.1:{plain}; location / {{ }} }}
            server {{
                listen 127.0.0.1:{tls} ssl http2;
                ssl_certificate {files.cert};
                ssl_certificate_key {files.key};
                location / {{ }}
            }}
        }}
    """)
    async with started("nginx", "-p", folder, "-c", config, "-e", "stderr") as server:
        await server.says("start worker process")
        yield plain, tls


@dataclass
class Net:
    broker: Broker
    watch: Watch
    asked: asyncio.Event
    """Set when the service that never answers has been sent something."""


@asynccontextmanager
async def net(folder: Path) -> AsyncIterator[Net]:
    watch, asked = Watch(), asyncio.Event()

    async def listening(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        await reader.read()

    async with contextlib.AsyncExitStack() as stack:
        ports = await stack.enter_async_context(nginx(folder))
        socket = DialAddress(path=folder / "dial.sock")
        settings = broker_settings(dial_listen=(socket,))
        broker = await stack.enter_async_context(Broker(settings, plugins=[watch]))
        silent = await stack.enter_async_context(service(listening))
        for hostname, port in zip(("web", "tls", "silent"), (*ports, silent), strict=True):
            agent = await stack.enter_async_context(
                running(agent_settings(broker.control_port, ports=f"{port}", hostname=hostname))
            )
            await agent.wait_registered()
        yield Net(broker, watch, asked)


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority().ca_cert))


@pytest.mark.parametrize("http2", [False, True])
def test_httpx_keeps_a_connection_for_the_next_request(tmp_path: Path, http2: bool) -> None:
    async def main() -> None:
        async with net(tmp_path) as it:
            transport = WhipTransport(it.broker, verify=trusting(), http2=http2)
            async with httpx.AsyncClient(transport=transport) as client:
                for url in (f"https://{TLS}/small", f"http://{WEB}/small"):
                    answers = [await client.get(url) for _ in range(3)]
                    assert [answer.text for answer in answers] == ["It works."] * 3
                    over_tls = url.startswith("https")
                    version = "HTTP/2" if http2 and over_tls else "HTTP/1.1"
                    assert {answer.http_version for answer in answers} == {version}
            assert len(it.watch.dials) == 2
            await it.watch.until(lambda: len(it.watch.closed) == 2)

    run(main())


def test_both_take_a_broker_in_another_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            net(tmp_path) as it,
            await connect(f"unix:{tmp_path / 'dial.sock'}") as broker,
        ):
            transport = WhipTransport(broker, verify=trusting())
            async with httpx.AsyncClient(transport=transport) as client:
                assert (await client.get(f"https://{TLS}/small")).text == "It works."
            del client, transport
            gc.collect()  # while TLS is still being ended: nothing is found unclosed
            async with (
                aiohttp.ClientSession(connector=WhipConnector(broker)) as session,
                session.get(f"https://{TLS}/small", ssl=trusting()) as answer,
            ):
                assert await answer.text() == "It works."
            await it.watch.until(lambda: len(it.watch.closed) == 2)

    run(main())
    for client in (WhipTransport, WhipConnector):  # what a type checker lets pass
        assert get_type_hints(client.__init__)["broker"] is Dials


def test_httpx_has_many_requests_on_one_http2_connection_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with net(tmp_path) as it:
            transport = WhipTransport(it.broker, verify=trusting(), http2=True)
            async with httpx.AsyncClient(transport=transport) as client:
                await client.get(f"https://{TLS}/small")
                requests = [client.get(f"https://{TLS}/large") for _ in range(4)]
                answers = await asyncio.gather(*requests)
                assert [len(answer.content) for answer in answers] == [LARGE] * 4
            assert len(it.watch.dials) == 1

    run(main())


@pytest.mark.parametrize("url", [f"http://{WEB}/large", f"https://{TLS}/large"])
def test_httpx_streams_and_a_response_left_early_ends_its_stream(tmp_path: Path, url: str) -> None:
    async def main() -> None:
        async with net(tmp_path) as it:
            transport = WhipTransport(it.broker, verify=trusting())
            async with httpx.AsyncClient(transport=transport) as client:
                async with client.stream("GET", url) as answer:
                    size = sum([len(piece) async for piece in answer.aiter_bytes()])
                assert size == LARGE
                async with client.stream("GET", url) as answer:
                    async for _ in answer.aiter_bytes():
                        break
                await it.watch.until(lambda: len(it.watch.closed) == 1)
                assert (await client.get(url.replace("large", "small"))).text == "It works."

    run(main())


def test_a_cancelled_request_of_httpx_leaves_no_stream(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            net(tmp_path) as it,
            httpx.AsyncClient(transport=WhipTransport(it.broker)) as client,
        ):
            request = asyncio.get_running_loop().create_task(client.get("http://silent.testdom/"))
            await it.asked.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await it.watch.until(lambda: len(it.watch.closed) == 1)

    run(main())


def test_what_goes_wrong_is_an_error_of_httpx_that_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            net(tmp_path) as it,
            httpx.AsyncClient(transport=WhipTransport(it.broker)) as client,
        ):
            with pytest.raises(httpx.ConnectError, match=r"names like it: web\.testdom") as caught:
                await client.get("http://wep.testdom/")
            error: BaseException | None = caught.value
            while error is not None and not isinstance(error, UnknownName):
                error = error.__cause__ or error.__context__
            assert error is not None
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://{TLS}/small")
            with pytest.raises(httpx.ReadTimeout):
                await client.get("http://silent.testdom/", timeout=0.1)

    run(main())


def test_aiohttp_keeps_connections_and_streams_in_the_clear_and_over_tls(tmp_path: Path) -> None:
    async def main() -> None:
        async with net(tmp_path) as it:
            connector = WhipConnector(it.broker, ssl=trusting())
            async with aiohttp.ClientSession(connector=connector) as session:
                for base in (f"http://{WEB}", f"https://{TLS}"):
                    for _ in range(3):
                        async with session.get(f"{base}/small") as answer:
                            assert await answer.text() == "It works."
                    async with session.get(f"{base}/large") as answer:
                        size = sum([len(piece) async for piece in answer.content.iter_any()])
                    assert size == LARGE
                assert len(it.watch.dials) == 2
            await it.watch.until(lambda: len(it.watch.closed) == 2)

    run(main())


def test_a_cancelled_request_of_aiohttp_leaves_no_stream(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            net(tmp_path) as it,
            aiohttp.ClientSession(connector=WhipConnector(it.broker)) as session,
        ):
            request = asyncio.get_running_loop().create_task(
                session.get("http://silent.testdom/")._coro  # type: ignore[arg-type]
            )
            await it.asked.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await it.watch.until(lambda: len(it.watch.closed) == 1)

    run(main())


def test_what_goes_wrong_is_an_error_of_aiohttp_that_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with net(tmp_path) as it:
            async with aiohttp.ClientSession(connector=WhipConnector(it.broker)) as session:
                with pytest.raises(aiohttp.ClientConnectorError, match="no agent is") as caught:
                    await session.get("http://nobody.other/")
                assert isinstance(caught.value.__cause__, DialError)
                assert caught.value.errno == errno.ECONNREFUSED
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await session.get(f"https://{TLS}/small")
                with pytest.raises(aiohttp.ServerFingerprintMismatch):
                    await session.get(f"https://{TLS}/small", ssl=aiohttp.Fingerprint(bytes(32)))
            waiting = WhipConnector(it.broker, wait=0.05)
            async with aiohttp.ClientSession(connector=waiting) as session:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await session.get("http://nobody.other/")

    run(main())


def test_a_dial_that_takes_too_long_is_a_timeout_to_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_late(*_: object, **__: object) -> None:
        raise DialTimeout("too late")

    async def main() -> None:
        async with net(tmp_path) as it:
            monkeypatch.setattr(it.broker, "open_connection", too_late)
            monkeypatch.setattr(it.broker, "create_connection", too_late)
            async with httpx.AsyncClient(transport=WhipTransport(it.broker)) as client:
                with pytest.raises(httpx.ConnectTimeout, match="too late"):
                    await client.get(f"http://{WEB}/small")
            async with aiohttp.ClientSession(connector=WhipConnector(it.broker)) as session:
                with pytest.raises(aiohttp.ConnectionTimeoutError):
                    await session.get(f"http://{WEB}/small")

    run(main())
