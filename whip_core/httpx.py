"""httpx over a broker: `httpx.AsyncClient(transport=WhipTransport(broker))`.

Needs `whip-tunnel[httpx]`. Keep-alive, HTTP/2, streaming and time limits are httpcore's;
this gives it streams of the broker in the place of sockets. A dial that fails is
`httpx.ConnectError` (or `ConnectTimeout`) with the `DialError`'s text.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from whip_core import tls_transport
from whip_core.caller import NOBODY, Caller
from whip_core.dials import Dials
from whip_core.sockets import duplex
from whip_core.stream_reader import BrokenLastReader

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)
"""What httpx itself has."""
HANDSHAKE_TIMEOUT = 30.0
"""Seconds, where the request has no time limit of its own."""


class WhipTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport, but for where its connections come from.

    The broker is one here, or one that `whip_core.connect` gave. `caller` is what plugins get
    to see of whoever asks; `wait` as for `Dials.open_connection`; all else as for
    `httpx.AsyncHTTPTransport`. The broker is not closed with it.
    """

    def __init__(
        self,
        broker: Dials,
        *,
        caller: Caller = NOBODY,
        wait: float = 0.0,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = LIMITS,
        retries: int = 0,
    ) -> None:
        context = httpx.create_ssl_context(verify=verify)
        super().__init__(verify=context, http1=http1, http2=http2, limits=limits, retries=retries)
        # httpx has no argument for httpcore's seam; this is the pool that it would have made.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=WhipBackend(broker, caller=caller, wait=wait),
        )


class WhipBackend(httpcore.AsyncNetworkBackend):
    """httpcore's seam: each connection is a stream of the broker."""

    def __init__(self, broker: Dials, *, caller: Caller = NOBODY, wait: float = 0.0) -> None:
        self._broker = broker
        self._caller = caller
        self._wait = wait

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _Stream(
                *await self._broker.open_connection(
                    host, port, caller=self._caller, wait=self._wait, timeout=timeout
                )
            )

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("a broker reaches names, not unix sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        reader = BrokenLastReader()
        protocol = _OverTLS(reader, self)
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            transport = await tls_transport.start(
                protocol,
                duplex(self._writer.transport),
                ssl_context,
                server_hostname=server_hostname or "",
                handshake_timeout=HANDSHAKE_TIMEOUT if timeout is None else timeout,
            )
        loop = asyncio.get_running_loop()
        return _Stream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of an idle connection: has the server closed it?
            ended = self._reader.at_eof() or self._reader.exception() is not None
            return ended or self._writer.is_closing()
        return self._writer.get_extra_info({"server_addr": "peername"}.get(info, info))


class _OverTLS(asyncio.StreamReaderProtocol):
    """Keeps the stream below while there is a transport, also once httpx has let go of both.

    Python closes the transport of a StreamWriter that nobody has any more, and warns; here it
    may still have to tell the service that TLS has ended.
    """

    def __init__(self, reader: asyncio.StreamReader, below: _Stream) -> None:
        super().__init__(reader)
        self._below = below


@contextmanager
def _translated(on_timeout: type[Exception], on_error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise on_timeout(str(error)) from error
    except OSError as error:
        raise on_error(str(error)) from error
