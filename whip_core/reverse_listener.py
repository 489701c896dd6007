"""Where agents' reverse connections arrive: handshake and preamble, then handed over.

Before it has said who it is a peer gets a deadline and a bounded buffer, and each has its
own connection object: a silent one delays nobody.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whip_core import tls_transport
from whip_core.certificates import certificate_names
from whip_core.errors import RemoteProtocolError
from whip_core.frames import FrameCodec, Role
from whip_core.preamble import OldPreamble, Preamble, PreambleReader
from whip_core.sockets import bind, duplex, peer_address
from whip_core.tls import peer_certificate

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections the kernel may hold for us: a restart brings every agent at once."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A peer that has said who it is; nothing is believed of it yet."""

    preamble: Preamble | OldPreamble
    address: tuple[str, int]
    certificate_names: tuple[str, ...] | None
    """None without TLS."""
    adopt: Callable[[asyncio.Protocol], None]
    """Hands the connection over to a protocol, with what came behind the preamble."""


Welcome = Callable[[Arrival], None]
"""Has the arrival adopted, or raises `RemoteProtocolError` to refuse it."""


class ReverseListener:
    """An async context manager; `port` is the bound one."""

    def __init__(
        self,
        welcome: Welcome,
        hosts: Sequence[str],
        port: int,
        context: ssl.SSLContext | None,
        *,
        handshake_timeout: float,
        preamble_timeout: float,
    ) -> None:
        self._welcome = welcome
        self._hosts = hosts
        self._context = context
        self._handshake_timeout = handshake_timeout
        self._preamble_timeout = preamble_timeout
        self._transports: set[asyncio.Transport] = set()
        self._servers: list[asyncio.Server] = []
        self.port = port

    async def __aenter__(self) -> ReverseListener:
        sockets = bind(self._hosts, self.port, "choose another with --whip-tcp-listen-port")
        self.port = sockets[0].getsockname()[1]
        for sock in sockets:
            self._servers.append(await self._serve(sock))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections, and drop those that have not said who they are."""
        for server in self._servers:
            server.close()
        for transport in list(self._transports):
            transport.abort()

    async def _serve(self, sock: socket.socket) -> asyncio.Server:
        if self._context is None:
            loop = asyncio.get_running_loop()
            return await loop.create_server(self._incoming, sock=sock, backlog=BACKLOG)
        return await tls_transport.serve(
            self._incoming,
            sock,
            self._context,
            handshake_timeout=self._handshake_timeout,
            on_failure=self._no_handshake,
            backlog=BACKLOG,
        )

    def _incoming(self) -> asyncio.Protocol:
        return _Incoming(self._welcome, self._preamble_timeout, self._transports)

    def _no_handshake(self, address: tuple[str, int], error: Exception) -> None:
        logger.warning("reverse port: no TLS handshake with %s port %d: %s", *address, error)


class _Incoming(asyncio.Protocol):
    """A connection from its handshake to its preamble."""

    def __init__(
        self, welcome: Welcome, timeout: float, transports: set[asyncio.Transport]
    ) -> None:
        self._welcome = welcome
        self._timeout = timeout
        self._transports = transports
        self._reader = PreambleReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = duplex(transport)
        self._address = peer_address(transport)
        self._transports.add(self._transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        try:
            preamble = self._reader.feed(data)
            if preamble is None:
                return
            certificate = peer_certificate(self._transport)
            names = certificate_names(certificate) if certificate is not None else None
            self._welcome(Arrival(preamble, self._address, names, self._adopt))
        except (RemoteProtocolError, ValueError) as error:  # ValueError: its certificate
            self._refuse(str(error))

    def _adopt(self, protocol: asyncio.Protocol) -> None:
        self._leave()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._reader.rest:
            protocol.data_received(self._reader.rest)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def _too_late(self) -> None:
        self._refuse(f"said nothing useful for {self._timeout:g} s")

    def _refuse(self, why: str) -> None:
        logger.warning("reverse port: refused %s port %d: %s", *self._address, why)
        self._leave()
        if self._reader.is_framed:  # an old peer would hand it on to its service
            self._transport.write(FrameCodec(Role.OPENER).reset(f"refused: {why}"))
        self._transport.close()

    def _leave(self) -> None:
        self._deadline.cancel()
        self._transports.discard(self._transport)
