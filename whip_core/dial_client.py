"""The connections of a dialling program to one broker's dial socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import ssl
from collections import deque
from collections.abc import Callable

from whip_core import tls_transport
from whip_core.certificates import proves_host
from whip_core.dial_address import DialAddress
from whip_core.dial_wire import REFUSED, Ask, Served, decode_served, encode_ask, failure, hello
from whip_core.errors import (
    AgentGone,
    BrokerClosed,
    DialError,
    DialTimeout,
    LocalProtocolError,
    NotAuthorized,
    RemoteProtocolError,
)
from whip_core.framed import FramedConnection
from whip_core.frames import DIAL_ID_SIZE, Side
from whip_core.stream import Stream
from whip_core.tasks import TaskSet
from whip_core.tls import peer_certificate

logger = logging.getLogger(__name__)

MAX_IDLE = 64
"""Idle connections that are kept: as many as a broker keeps of one agent."""
CONNECT_TIMEOUT = 10.0
"""Seconds for a connection and its handshake: as for a whole dial."""
GRACE = 2.0
"""Seconds beyond a dial's own time that a broker has to say that it is over."""
NEWS_TIMEOUT = CONNECT_TIMEOUT + GRACE
"""Seconds for the news to begin: a connection, and then a word from the broker itself."""


class DialClient:
    """Opens streams through a broker.

    `context` gives the TLS context for a new connection in TCP, where TLS is a must.
    """

    def __init__(self, address: DialAddress, context: Callable[[], ssl.SSLContext] | None) -> None:
        self.address = address
        self._context = context
        self._idle: deque[FramedConnection] = deque()
        self._all: set[FramedConnection] = set()
        self._tasks = TaskSet()
        self._spare: asyncio.Task[None] | None = None
        self._closed = False
        self._streams: set[Stream] = set()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<DialClient {self.address} connections={len(self._all)} idle={len(self._idle)}>"

    async def open(self, ask: Ask, timeout: float) -> tuple[Stream, Served]:
        """The stream that is asked for, held back until it has a protocol; and who serves it.

        Waits up to `ask.wait` seconds and takes up to `timeout`. Raises the `DialError` that
        an embedded broker would raise, and `BrokerClosed` if this one cannot be reached.
        Cancelled, it leaves nothing behind, here or there.
        """
        try:
            async with asyncio.timeout(ask.wait + timeout + GRACE):
                stream = await self._open(encode_ask(ask), ask.port, f"{ask.name}:{ask.port}: ")
        except DialError:
            raise  # among them the broker's own DialTimeout
        except TimeoutError as error:
            raise DialTimeout(
                f"{ask.name}:{ask.port}: the broker at {self.address} did not answer in time"
            ) from error
        try:
            served = decode_served(stream.get_extra_info("opened", "{}"))
        except RemoteProtocolError as error:
            stream.abort()
            raise DialError(f"{ask.name}: the broker at {self.address}: {error}") from error
        if stream.cause is None:
            self._streams.add(stream)
        stream.describe(peername=served.address)
        return stream, served

    @property
    def busy(self) -> bool:
        """Whether a stream is open, but for the news."""
        return bool(self._streams)

    async def wait_changed(self) -> None:
        """Wait until a stream has ended."""
        await self._changed.wait()

    def _finished(self, stream: Stream) -> None:
        self._streams.discard(stream)
        self._changed.set()
        self._changed = asyncio.Event()

    async def news(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream of the broker's news, as lines. Raises `BrokerClosed`, `NotAuthorized`."""
        try:
            async with asyncio.timeout(NEWS_TIMEOUT):
                stream = await self._open("", 0, "")
        except TimeoutError as error:
            raise BrokerClosed(
                f"the broker at {self.address} did not answer within {NEWS_TIMEOUT:g} s"
            ) from error
        reader = asyncio.StreamReader(limit=1 << 20)
        protocol = asyncio.StreamReaderProtocol(reader)
        stream.attach(protocol)
        return reader, asyncio.StreamWriter(stream, protocol, reader, asyncio.get_running_loop())

    async def close(self) -> None:
        """Close every connection; streams on them are cut."""
        self._closed = True
        await self._tasks.cancel_all()
        for connection in tuple(self._all):
            connection.close()

    async def _open(self, asked: str, port: int, about: str) -> Stream:
        """`about` begins the errors that are not the broker's own."""
        while True:
            self._check_open(about)
            connection = self._take()
            fresh = connection is None
            if connection is None:
                connection = await self._connect(about)
            try:
                return await connection.open(
                    port,
                    secrets.token_bytes(DIAL_ID_SIZE),
                    extra={},
                    on_finished=self._finished,
                    name=asked,
                )
            except LocalProtocolError as error:
                self._park(connection)
                raise DialError(f"{about}it cannot be sent to the broker: {error}") from error
            except AgentGone as error:
                if not connection.lost:
                    raise  # that is the broker's answer
                if not fresh:
                    logger.debug("%r was dead: %s", connection, error)
                    continue
                said = f"{about}the broker at {self.address}"
                if connection.reset_why.startswith(REFUSED):
                    raise NotAuthorized(f"{said} {connection.reset_why}") from error
                raise BrokerClosed(f"{said} went away: {error}") from error

    def _check_open(self, about: str) -> None:
        if self._closed:
            raise BrokerClosed(f"{about}the connection to the broker was closed here")

    def _take(self) -> FramedConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_parked:
                if not self._idle and self._context is not None and self._spare is None:
                    # Over TCP a handshake takes round trips: the next dial shall find one too.
                    self._spare = self._tasks.spawn(self._open_spare(), "spare dial connection")
                return connection
        return None

    async def _open_spare(self) -> None:
        try:
            with contextlib.suppress(BrokerClosed):  # a dial will find out, and say so
                self._park(await self._connect(""))
        finally:
            self._spare = None

    async def _connect(self, about: str) -> FramedConnection:
        connection = FramedConnection(
            Side.OPENER,
            on_idle=self._park,
            on_lost=self._forget,
            dial_socket=True,
            failure=failure,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                transport = await self._connected(connection)
        except TimeoutError as error:
            raise BrokerClosed(
                f"{about}no answer from the broker at {self.address} within {CONNECT_TIMEOUT:g} s"
            ) from error
        except (OSError, ValueError) as error:
            raise BrokerClosed(
                f"{about}no broker can be reached at {self.address}: {error}; "
                "is `whip broker` running?"
            ) from error
        if self._closed:  # meanwhile, and nobody else knows of this connection
            connection.close()
        self._check_open(about)
        self._all.add(connection)
        transport.write(hello())
        return connection

    async def _connected(self, connection: FramedConnection) -> asyncio.Transport:
        if self.address.path is not None:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_unix_connection(
                lambda: connection, str(self.address.path)
            )
            return transport
        host, port = self.address.host, self.address.port
        if self._context is None:
            raise ValueError("a dial socket over TCP requires TLS")
        secured = await tls_transport.connect(
            connection, host, port, self._context(), handshake_timeout=CONNECT_TIMEOUT
        )
        certificate = peer_certificate(secured)
        if certificate is None or not proves_host(certificate, host):
            secured.abort()
            raise ValueError(f"its certificate is for other names, not for {host}")
        return secured

    def _park(self, connection: FramedConnection) -> None:
        if self._closed or len(self._idle) >= MAX_IDLE:
            connection.close()
        elif connection.is_parked:
            self._idle.append(connection)

    def _forget(self, connection: FramedConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
