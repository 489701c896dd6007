"""Where agents' reverse connections arrive: handshake and preamble, then handed over.

Before it has said who it is a peer is one of the `strangers`, with a bounded buffer.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whip_core.acceptor import Acceptor
from whip_core.certificates import certificate_names
from whip_core.frames import FrameCodec, Side
from whip_core.limits import Limits
from whip_core.preamble import OldPreamble, Preamble, PreambleReader
from whip_core.sockets import bind
from whip_core.strangers import OnRefused, Stranger, Strangers
from whip_core.tls import peer_certificate

REMEDY = "choose another with --whip-tcp-listen-port"


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
        self._strangers = Strangers(
            "reverse port", self._limits.unauthenticated, preamble_timeout, on_refused
        )
        self._acceptors: list[Acceptor] = []
        self.port = port

    async def __aenter__(self) -> ReverseListener:
        sockets = bind(self._hosts, self.port, REMEDY)
        self.port = sockets[0].getsockname()[1]
        self._acceptors = [Acceptor(sock, self._incoming) for sock in sockets]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
        for acceptor in self._acceptors:
            await acceptor.wait_closed()

    def close(self) -> None:
        """Take no more connections, and drop those that have not identified themselves."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._strangers.close()

    def _incoming(self) -> asyncio.BaseProtocol:
        return self._strangers.arrive(
            _Incoming(self._welcome, self._strangers, self._limits.preamble_size),
            self._context() if self._context is not None else None,
            self._handshake_timeout,
        )


class _Incoming(Stranger):
    """A connection from its acceptance to its preamble."""

    def __init__(self, welcome: Welcome, strangers: Strangers, preamble_size: int) -> None:
        super().__init__(strangers)
        self._welcome = welcome
        self._reader = PreambleReader(preamble_size)

    def heard(self, data: bytes) -> None:
        preamble = self._reader.feed(data)
        if preamble is None:
            return
        certificate = peer_certificate(self.transport)
        names = certificate_names(certificate) if certificate is not None else None
        self._welcome(Arrival(preamble, self.address, names, certificate, self._adopt))

    def _adopt(self, protocol: asyncio.Protocol) -> None:
        self.become(protocol, self._reader.rest)

    def farewell(self, why: str) -> bytes:
        if not self._reader.is_framed:  # an old peer would hand it on to its service
            return b""
        return FrameCodec(Side.OPENER).reset(f"refused: {why}")
