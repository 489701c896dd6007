"""TLS over any asyncio transport: `tls_records` with a socket below and a protocol above.

asyncio's own TLS keeps a buffer of 256 KiB for each connection; this keeps none, because
what is decrypted is handed on before the call returns: all connections share two buffers.
uvloop's hangs when both ends write megabytes at once over small socket buffers (uvloop
0.23; the conformance suite's first test shows it).

An end by TLS's own means (close_notify) is `eof_received`. A connection that goes without
it is `connection_lost` alone, so that a cut cannot pass for an end. Ending one direction
only is not offered: `can_write_eof` is False.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, cast

from whip_core.drain import BoundedDrain
from whip_core.sockets import duplex, peer_address
from whip_core.tls_records import RECORD_SIZE, TLSRecords

logger = logging.getLogger(__name__)

READ_SIZE = 64 * 1024
"""Octets taken from a socket in one read: what a socket's buffer usually holds."""


class _Buffers(threading.local):
    """What all connections of an event loop's thread share: nothing stays in it between calls."""

    def __init__(self) -> None:
        self.received = memoryview(bytearray(READ_SIZE))
        # What one read brings may complete a record whose beginning came before.
        self.decrypted = memoryview(bytearray(READ_SIZE + RECORD_SIZE))


_buffers = _Buffers()


class TLSTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """A transport to the protocol above it, and the protocol of the transport below.

    The protocol above gets `connection_made` when the handshake is done, and is asked for
    its `data_received` once, when it is set.
    """

    takes_views = True
    transport: asyncio.Transport
    """The one below."""

    def __init__(
        self,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
        handshake_timeout: float,
        on_handshake: Callable[[Exception | None], None],
    ) -> None:
        super().__init__()
        self.set_protocol(protocol)
        self._records = TLSRecords(
            context, server_side=server_side, server_hostname=server_hostname
        )
        self._handshake_timeout = handshake_timeout
        self._on_handshake: Callable[[Exception | None], None] | None = on_handshake
        self._received, self._decrypted = _buffers.received, _buffers.decrypted
        self._drain: BoundedDrain | None = None
        self._established = False
        self._closing = False
        self._paused = False
        self._flows = False  # what is received can be handed on

    def __repr__(self) -> str:
        state = "closing" if self._closing else "open" if self._established else "handshake"
        return f"<TLSTransport {state} {peer_address(self.transport)}>"

    @property
    def plain(self) -> asyncio.Transport | None:
        """What it runs on; None as long as it is not connected."""
        return getattr(self, "transport", None)

    # The plain transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = duplex(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._handshake_timeout, self._too_late)
        self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        if self._flows:
            data = self._records.decrypt(self._received[:nbytes], self._decrypted)
            if data:
                self._give(data)
            self._after_reading()
        elif self._drain is not None:
            self._drain.discard(nbytes)
        else:
            self._records.feed(self._received[:nbytes])
            if not self._established:
                self._shake_hands()

    def data_received(self, data: bytes | memoryview) -> None:
        """From a transport that gives bytes: a stream, under another TLS."""
        view = memoryview(data)
        for begin in range(0, len(view), READ_SIZE):
            piece = view[begin : begin + READ_SIZE]
            self._received[: len(piece)] = piece
            self.buffer_updated(len(piece))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._established:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._established:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._deadline.cancel()
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        if self._established:
            self._protocol.connection_lost(exc)
        else:
            self._handshake_ended(exc or ConnectionResetError("closed during the TLS handshake"))

    # Handshake

    def _shake_hands(self) -> None:
        try:
            done = self._records.handshake()
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(error)
            return
        self._flush()
        if done:
            self._deadline.cancel()
            self._established = True
            self._protocol.connection_made(self)
            self._handshake_ended(None)
            self._go_on()

    def _too_late(self) -> None:
        self._fail(TimeoutError(f"no TLS handshake within {self._handshake_timeout:g} s"))

    def _fail(self, error: Exception) -> None:
        self._handshake_ended(error)
        self.transport.close()

    def _handshake_ended(self, error: Exception | None) -> None:
        told, self._on_handshake = self._on_handshake, None
        if told is not None:
            told(error)

    # Reading

    def _after_reading(self) -> None:
        """What OpenSSL has to say of what was read, if anything."""
        records = self._records
        if records.outgoing.pending:
            self._flush()
        if not records.over or self._closing:
            return
        if records.error is not None:
            logger.debug("%r: %s", self, records.error)
            self.abort()
        elif not self._paused:
            self._protocol.eof_received()
            self.close()

    def _go_on(self) -> None:
        """Hand on what came meanwhile, and then what comes."""
        while not (self._paused or self._closing):
            data = self._records.decrypt_fed(self._decrypted)
            if not data:
                self._flows = True
                break
            self._give(data)
        self._after_reading()

    def pause_reading(self) -> None:
        self._paused = True
        self._flows = False
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if self._records.holds:
                asyncio.get_running_loop().call_soon(self._resume)
            else:
                self._resume()

    def _resume(self) -> None:
        if self._paused or self._closing:
            return
        self._go_on()
        if not (self._paused or self._closing):
            self.transport.resume_reading()

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing and data:
            records = self._records.encrypt(data)
            if not self.transport.is_closing():
                self.transport.write(records)

    def _flush(self) -> None:
        records = self._records.to_send()
        if records and not self.transport.is_closing():
            self.transport.write(records)

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("TLS ends in both directions")

    def get_write_buffer_size(self) -> int:
        return self.transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.transport.set_write_buffer_limits(high, low)

    # Ending

    def is_closing(self) -> bool:
        return self._closing

    def _stop(self) -> None:
        self._closing = True
        self._flows = False

    def close(self) -> None:
        """Say close_notify, and wait a little for the other end to have taken all of it."""
        if self._closing:
            return
        self._stop()
        farewell = self._records.close()
        if self.transport.is_closing():
            return
        self.transport.write(farewell)
        if self._records.over or not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # the other end was faster
            self.transport.abort()
            return
        self._drain = BoundedDrain(self.transport, self.transport.abort)
        self.transport.resume_reading()

    def abort(self) -> None:
        self._stop()
        self.transport.abort()

    # What is above and below

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._records.ssl_object
        if name == "sslcontext":
            return self._records.ssl_object.context
        return self.transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)
        self._give = self._protocol.data_received

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol


class Accepting(TLSTransport):
    """TLS under `protocol` for a connection that was accepted: the protocol of its socket.

    `on_failure` is told of the peer (host, port) if its handshake fails, and why.
    """

    def __init__(
        self,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        handshake_timeout: float,
        on_failure: Callable[[tuple[str, int], Exception], None],
    ) -> None:
        def ended(error: Exception | None) -> None:
            if error is not None:
                on_failure(peer_address(self.transport), error)

        super().__init__(
            protocol,
            context,
            server_side=True,
            server_hostname=None,
            handshake_timeout=handshake_timeout,
            on_handshake=ended,
        )


async def connect(
    protocol: asyncio.Protocol,
    host: str,
    port: int,
    context: ssl.SSLContext,
    *,
    handshake_timeout: float,
    sock: socket.socket | None = None,
) -> asyncio.Transport:
    """Connect `protocol` to `host:port` over TLS; gives its transport.

    A `sock` is connected already, by way of a proxy.

    Raises `OSError` (`ssl.SSLError` is one). Who the peer is beyond having a certificate
    from the context's CA is for the caller to check.
    """
    wire, done = _client_wire(protocol, context, host, handshake_timeout)
    loop = asyncio.get_running_loop()
    try:
        if sock is not None:
            plain, _ = await loop.create_connection(lambda: wire, sock=sock)
        else:
            plain, _ = await loop.create_connection(lambda: wire, host, port)
    except BaseException:
        if not done.cancel():
            done.exception()  # nobody waits for it any more
        raise
    return await _established(wire, done, plain)


async def start(
    protocol: asyncio.Protocol,
    transport: asyncio.Transport,
    context: ssl.SSLContext,
    *,
    server_hostname: str,
    handshake_timeout: float,
) -> asyncio.Transport:
    """Put TLS under `protocol` on a transport that is open already, a stream's as well.

    Like `loop.start_tls` for a client, but on every event loop and transport. The transport
    is the TLS's from here on: it is closed with it, and when the handshake fails. Raises
    `OSError` (`ssl.SSLError` is one).
    """
    wire, done = _client_wire(protocol, context, server_hostname, handshake_timeout)
    transport.set_protocol(wire)
    wire.connection_made(transport)
    return await _established(wire, done, transport)


def _client_wire(
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    server_hostname: str,
    handshake_timeout: float,
) -> tuple[TLSTransport, asyncio.Future[None]]:
    """A client's wire, and the future that its handshake ends."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    wire = TLSTransport(
        protocol,
        context,
        server_side=False,
        server_hostname=server_hostname,
        handshake_timeout=handshake_timeout,
        on_handshake=ended,
    )
    return wire, done


async def _established(
    wire: TLSTransport, done: asyncio.Future[None], plain: asyncio.Transport
) -> asyncio.Transport:
    try:
        await done
    except BaseException:
        plain.abort()
        raise
    return wire
