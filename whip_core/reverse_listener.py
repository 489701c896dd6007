"""Where agents' reverse connections arrive: handshake and preamble, then handed over.

Before it has said who it is a peer gets a deadline and a bounded buffer, and each has its
own connection object: a silent one delays nobody.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whip_core import tls_transport
from whip_core.acceptor import Acceptor
from whip_core.certificates import certificate_names
from whip_core.errors import RemoteProtocolError
from whip_core.frames import FrameCodec, Role
from whip_core.limits import Limits
from whip_core.preamble import OldPreamble, Preamble, PreambleReader
from whip_core.rare_log import RareLog
from whip_core.sockets import bind, duplex, peer_address
from whip_core.tls import peer_certificate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A peer that has said who it is; nothing is believed of it yet."""

    preamble: Preamble | OldPreamble
    address: tuple[str, int]
    certificate_names: tuple[str, ...] | None
    """None without TLS."""
    certificate: bytes | None
    """DER; None without TLS."""
    adopt: Callable[[asyncio.Protocol], None]
    """Hands the connection over to a protocol, with what came behind the preamble."""


Welcome = Callable[[Arrival], None]
"""Has the arrival adopted, or raises `RemoteProtocolError` to refuse it."""


OnRefused = Callable[[tuple[str, int], str, str], None]
"""Told of each peer that is refused: its address, the reason's short name, and a text."""


class ReverseListener:
    """An async context manager; `port` is the bound one.

    `context` gives the TLS context for a new connection; None means plaintext.
    """

    def __init__(
        self,
        welcome: Welcome,
        hosts: Sequence[str],
        port: int,
        context: Callable[[], ssl.SSLContext] | None,
        *,
        handshake_timeout: float,
        preamble_timeout: float,
        limits: Limits | None = None,
        on_refused: OnRefused = lambda *_: None,
    ) -> None:
        self._welcome = welcome
        self._hosts = hosts
        self._context = context
        self._handshake_timeout = handshake_timeout
        self._limits = limits or Limits()
        self._on_refused = on_refused
        self._log = RareLog(logger)
        self._waiting = _Waiting(preamble_timeout, self._limits.preamble_size, self._refused)
        self._acceptors: list[Acceptor] = []
        self._closed = False
        self.port = port

    async def __aenter__(self) -> ReverseListener:
        sockets = bind(self._hosts, self.port, "choose another with --whip-tcp-listen-port")
        self.port = sockets[0].getsockname()[1]
        self._acceptors = [Acceptor(sock, self._incoming) for sock in sockets]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections, and drop those that have not said who they are."""
        self._closed = True
        for acceptor in self._acceptors:
            acceptor.close()
        for incoming in self._waiting.all():
            incoming.drop()

    def _incoming(self) -> asyncio.BaseProtocol:
        if self._closed:
            raise ConnectionAbortedError("the listener is closed")
        self._make_room()
        incoming = _Incoming(self._welcome, self._waiting)
        if self._context is None:
            return incoming
        wire = tls_transport.Accepting(
            incoming,
            self._context(),
            handshake_timeout=self._handshake_timeout,
            on_failure=functools.partial(self._no_handshake, incoming),
        )
        incoming.wire = wire
        return wire

    def _make_room(self) -> None:
        """Who has said nothing for the longest time goes: most likely it never will."""
        most = self._limits.unauthenticated
        if not most or len(self._waiting) < most:
            return
        oldest = self._waiting.oldest()
        if oldest.drop():
            why = f"{most} connections have not said who they are, this one for the longest time"
            self._refused(oldest.address, "unauthenticated", why)
        else:
            raise ConnectionAbortedError("too many at once")

    def _no_handshake(
        self, incoming: _Incoming, address: tuple[str, int], error: Exception
    ) -> None:
        if self._waiting.leave(incoming) and not incoming.dropped:
            text = f"no TLS handshake with {address[0]} port {address[1]}: {error}"
            self._log.warning("reverse port: %s", text)
            self._on_refused(address, "handshake", text)

    def _refused(self, address: tuple[str, int], reason: str, why: str) -> None:
        self._log.warning("reverse port: refused %s port %d: %s", *address, why)
        self._on_refused(address, reason, why)


class _Waiting:
    """The connections that have not said who they are, oldest first, and what they share."""

    def __init__(self, timeout: float, preamble_size: int, refused: OnRefused) -> None:
        self.timeout = timeout
        self.preamble_size = preamble_size
        self.refused = refused
        self._incoming: dict[_Incoming, None] = {}

    def __len__(self) -> int:
        return len(self._incoming)

    def all(self) -> list[_Incoming]:
        return list(self._incoming)

    def oldest(self) -> _Incoming:
        return next(iter(self._incoming))

    def enter(self, incoming: _Incoming) -> None:
        self._incoming[incoming] = None

    def leave(self, incoming: _Incoming) -> bool:
        """Whether it was still among them."""
        if incoming not in self._incoming:
            return False
        del self._incoming[incoming]
        return True


class _Incoming(asyncio.Protocol):
    """A connection from its acceptance to its preamble; over TLS on `wire`."""

    def __init__(self, welcome: Welcome, waiting: _Waiting) -> None:
        self._welcome = welcome
        self._waiting = waiting
        self._reader = PreambleReader(waiting.preamble_size)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.wire: tls_transport.Accepting | None = None
        self.address = ("", 0)
        self.dropped = False
        waiting.enter(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = duplex(transport)
        self.address = peer_address(transport)
        if self.dropped:
            self._transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._waiting.timeout, self._too_late)

    def drop(self) -> bool:
        """Close it without a word; False if it is too new for that, and will be closed soon."""
        self.dropped = True
        transport = self._transport
        if transport is None:
            wire = self.wire
            if wire is None or (plain := wire.plain) is None:
                return False
            transport, self.address = plain, peer_address(plain)
        self._leave()
        transport.abort()
        return True

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            preamble = self._reader.feed(data)
            if preamble is None:
                return
            certificate = peer_certificate(self._transport)
            names = certificate_names(certificate) if certificate is not None else None
            self._welcome(Arrival(preamble, self.address, names, certificate, self._adopt))
        except (RemoteProtocolError, ValueError) as error:  # ValueError: its certificate
            self._refuse("preamble", str(error))

    def _adopt(self, protocol: asyncio.Protocol) -> None:
        assert self._transport is not None
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
        self._refuse("preamble-timeout", f"said nothing useful for {self._waiting.timeout:g} s")

    def _refuse(self, reason: str, why: str) -> None:
        assert self._transport is not None
        self._waiting.refused(self.address, reason, why)
        self._leave()
        if self._reader.is_framed:  # an old peer would hand it on to its service
            self._transport.write(FrameCodec(Role.OPENER).reset(f"refused: {why}"))
        self._transport.close()

    def _leave(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._waiting.leave(self)
