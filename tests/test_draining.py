"""A proxy that drains, and HTTP/2 clients, which have many requests at a time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

from mitm import (
    FakeBroker,
    Parts,
    Proxy,
    answering,
    answering_http2,
    confdir,
    curl,
    proxy,
    service,
    web_context,
)
from tunnel import run
from whip_addon import draining

HOST = "a.testdom"


def ca_file() -> str:
    return str(confdir() / "mitmproxy-ca-cert.pem")


def secure(parts: Parts) -> AbstractAsyncContextManager[int]:
    return service(answering_http2(parts), ssl=web_context(HOST, alpn="h2"))


@asynccontextmanager
async def client_of(p: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    trust = ssl.create_default_context(cafile=ca_file())
    async with httpx.AsyncClient(http2=True, proxy=p.url, verify=trust) as client:
        yield client


def begin_drain(p: Proxy) -> asyncio.Task[None]:
    drain = p.master.addons.get("whip")._draining.drain(60)
    return asyncio.get_running_loop().create_task(drain)


def test_a_client_with_a_download_is_not_idle_when_another_of_its_requests_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draining, "IDLE", 0.01)
    may_end = asyncio.Event()

    async def parts(path: str) -> AsyncIterator[bytes]:
        yield b"one half"
        if path == "/slow":
            await may_end.wait()
        yield b"the other"

    async def main() -> None:
        async with (
            secure(parts) as port,
            service(answering(b"hello")) as plain,
            proxy(
                FakeBroker({HOST: port, "plain": plain}),
                ssl_insecure=True,
                stream_large_bodies="1",
            ) as p,
            client_of(p) as client,
            client.stream("GET", f"https://{HOST}/slow") as slow,
        ):
            received = slow.aiter_raw()
            assert await anext(received) == b"one half"
            assert (await client.get(f"https://{HOST}/fast")).content == b"one halfthe other"
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"GET http://plain/ HTTP/1.1\r\nHost: plain\r\n\r\n")
            assert await reader.readuntil(b"hello")
            drain = begin_drain(p)
            # The one that is idle is hung up on: the other was looked at before it.
            assert await reader.read() == b""
            writer.close()
            may_end.set()
            assert [part async for part in received] == [b"the other"]
            await drain

    run(main())


def test_the_header_that_ends_a_connection_is_not_sent_over_http2() -> None:
    """It is forbidden there: curl takes such a response for a violation."""
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def parts(_: str) -> AsyncIterator[bytes]:
        asked.set()
        await may_answer.wait()
        yield b"hello"

    async def main() -> None:
        async with (
            secure(parts) as port,
            proxy(FakeBroker({HOST: port}), ssl_insecure=True) as p,
        ):
            request = asyncio.get_running_loop().create_task(
                curl(
                    *("--proxy", p.url, "--http2", "--cacert", ca_file()),
                    *("--write-out", " over %{http_version}", f"https://{HOST}/"),
                )
            )
            await asked.wait()
            drain = begin_drain(p)
            may_answer.set()
            answer = await request
            assert (answer.output, answer.errors) == ("hello over 2", "")
            await drain

    run(main())
