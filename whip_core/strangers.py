"""Connections that have not identified themselves: what each of a broker's doors grants them.

A stranger has a deadline and an object of its own, so a silent one delays nobody. Together
those at one door are bounded: the one that has been silent for the longest makes room for a
newcomer, as most likely it will never speak. What they can cause to be logged is bounded too.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from abc import abstractmethod
from collections.abc import Callable

from whip_core import tls_transport
from whip_core.errors import RemoteProtocolError
from whip_core.rare_log import RareLog
from whip_core.sockets import duplex, peer_address

logger = logging.getLogger(__name__)

OnRefused = Callable[[tuple[str, int], str, str], None]
"""Told of each peer that is refused: its address, the reason's short name, and a text."""


class Strangers:
    """Those at one door, oldest first.

    `door` is its name in the log. At most `most` of them (0: any number) have `timeout`
    seconds each, from when they are connected, over TLS from the end of their handshake.
    """

    def __init__(self, door: str, most: int, timeout: float, on_refused: OnRefused) -> None:
        self.timeout = timeout
        self._door = door
        self._most = most
        self._on_refused = on_refused
        self._log = RareLog(logger)
        self._all: dict[Stranger, None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._all)

    def close(self) -> None:
        """Take no more of them, and drop those there are."""
        self._closed = True
        for stranger in tuple(self._all):
            stranger.drop()

    def arrive(
        self, stranger: Stranger, context: ssl.SSLContext | None, handshake_timeout: float
    ) -> asyncio.BaseProtocol:
        """The protocol for the socket of one that is just accepted; a `context` makes it TLS.

        Raises `ConnectionAbortedError` if there is no room for it.
        """
        if self._closed:
            raise ConnectionAbortedError("the listener is closed")
        self._make_room()
        self._all[stranger] = None
        if context is None:
            return stranger
        stranger.wire = tls_transport.Accepting(
            stranger,
            context,
            handshake_timeout=handshake_timeout,
            on_failure=functools.partial(self._no_handshake, stranger),
        )
        return stranger.wire

    def _make_room(self) -> None:
        if not self._most or len(self._all) < self._most:
            return
        oldest = next(iter(self._all))
        if not oldest.drop():
            raise ConnectionAbortedError("too many at once")
        why = f"{self._most} connections have not identified themselves, this one for the longest"
        self.refused(oldest.address, "unauthenticated", why)

    def _no_handshake(self, stranger: Stranger, address: tuple[str, int], error: Exception) -> None:
        if self.leave(stranger) and not stranger.dropped:
            text = f"no TLS handshake with {address[0]} port {address[1]}: {error}"
            self._log.warning("%s: %s", self._door, text)
            self._on_refused(address, "handshake", text)

    def refused(self, address: tuple[str, int], reason: str, why: str) -> None:
        self._log.warning("%s: refused %s port %d: %s", self._door, *address, why)
        self._on_refused(address, reason, why)

    def leave(self, stranger: Stranger) -> bool:
        """Whether it was still among them."""
        if stranger not in self._all:
            return False
        del self._all[stranger]
        return True


class Stranger(asyncio.Protocol):
    """A connection from its acceptance until it is known or refused; over TLS on `wire`."""

    reason = "preamble"
    """Short name of why it is refused if it says something wrong; `-timeout` if nothing."""

    def __init__(self, strangers: Strangers) -> None:
        self._strangers = strangers
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.wire: tls_transport.Accepting | None = None
        self.address = ("", 0)
        self.dropped = False

    @abstractmethod
    def heard(self, data: bytes) -> None:
        """Read on, and `become` something once it is known who it is.

        Raises `RemoteProtocolError`, or `ValueError` for its certificate, to refuse it.
        """

    @abstractmethod
    def farewell(self, why: str) -> bytes:
        """What it is told when it is refused; nothing, if it would not understand."""

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def become(self, protocol: asyncio.Protocol, rest: bytes) -> None:
        """Hand the connection over to `protocol`, with what came already."""
        self.leave()
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if rest:
            protocol.data_received(rest)

    def drop(self) -> bool:
        """Close it without a word; False if it is too new for that, and will be closed soon."""
        self.dropped = True
        transport = self._transport
        if transport is None:
            wire = self.wire
            if wire is None or (plain := wire.plain) is None:
                return False
            transport, self.address = plain, peer_address(plain)
        self.leave()
        transport.abort()
        return True

    def refuse(self, reason: str, why: str) -> None:
        self._strangers.refused(self.address, reason, why)
        self.leave()
        if words := self.farewell(why):
            self.transport.write(words)
        self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = duplex(transport)
        self.address = peer_address(transport)
        if self.dropped:
            self._transport.abort()
            return
        self.wait_for_word()

    def wait_for_word(self) -> None:
        """From now on it has `timeout` seconds."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._strangers.timeout, self.too_late)

    def stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self.heard(data)
        except (RemoteProtocolError, ValueError) as error:
            self.refuse(self.reason, str(error))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()

    def too_late(self) -> None:
        self.refuse(
            f"{self.reason}-timeout",
            f"did not identify itself within {self._strangers.timeout:g} s",
        )

    def leave(self) -> None:
        """Be no stranger any more."""
        self.stop_waiting()
        self._strangers.leave(self)
