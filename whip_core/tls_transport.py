"""TLS over any asyncio transport: a thin protocol around `ssl.SSLObject`.

asyncio's own TLS keeps a buffer of 256 KiB for each connection; this keeps none, because
what is decrypted is handed on before the call returns: all connections share two buffers.
uvloop's is lean and a little faster, but hangs when both ends write megabytes at once
over small socket buffers (uvloop 0.23; the conformance suite's first test shows it). The
cryptography, and every decision about the handshake, is OpenSSL's.

An end by TLS's own means (close_notify) is `eof_received`. A connection that goes without
it is `connection_lost` alone, so that a cut cannot pass for an end. Ending one direction
only is not offered: `can_write_eof` is False.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

from whip_core.drain import BoundedDrain
from whip_core.sockets import duplex, peer_address

logger = logging.getLogger(__name__)

READ_SIZE = 64 * 1024
"""Octets taken from a socket in one read: what a socket's buffer usually holds."""
RECORD_SIZE = 16 * 1024
"""Octets of one TLS record (RFC 8446 §5.1), and what OpenSSL is given at a time. Its memory
BIOs never shrink: in larger pieces, each connection would keep the largest it ever saw."""

_received = bytearray(READ_SIZE)
_received_view = memoryview(_received)
_nothing = _received_view[:0]
# What one read brings may complete a record whose beginning came before.
_decrypted_view = memoryview(bytearray(READ_SIZE + RECORD_SIZE))


class TLSTransport(asyncio.Transport):
    """What the protocol above sees; the wire below is a `_Wire`."""

    def __init__(self, wire: _Wire, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self._wire = wire

    def __repr__(self) -> str:
        return f"<TLSTransport {self._wire!r}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        value = super().get_extra_info(name)
        return value if value is not None else self._wire.transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._wire.protocol = protocol  # type: ignore[assignment]  # as in asyncio

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._wire.protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._wire.encrypt(data)

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("TLS ends in both directions")

    def is_closing(self) -> bool:
        return self._wire.closing

    def close(self) -> None:
        self._wire.close()

    def abort(self) -> None:
        self._wire.abort()

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()

    def is_reading(self) -> bool:
        return not self._wire.paused and not self._wire.closing

    def get_write_buffer_size(self) -> int:
        return self._wire.transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._wire.transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._wire.transport.set_write_buffer_limits(high, low)


class _Wire(asyncio.BufferedProtocol):
    """The encrypted side: handshake, records in, records out."""

    transport: asyncio.Transport

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
        self.protocol = protocol
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._handshake_timeout = handshake_timeout
        self._on_handshake: Callable[[Exception | None], None] | None = on_handshake
        self._established = False
        self._ended = False
        self._drain: BoundedDrain | None = None
        self.upper: TLSTransport | None = None
        self.closing = False
        self.paused = False

    def __repr__(self) -> str:
        state = "closing" if self.closing else "open" if self._established else "handshake"
        return f"<_Wire {state} {peer_address(self.transport)}>"

    # The plain transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = duplex(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._handshake_timeout, self._too_late)
        self._shake_hands()

    @property
    def plain(self) -> asyncio.Transport | None:
        """What it runs on; None as long as it is not connected."""
        return getattr(self, "transport", None)

    def get_buffer(self, sizehint: int) -> bytearray:
        return _received

    def buffer_updated(self, nbytes: int) -> None:
        if self._drain is not None:
            self._drain.discard(nbytes)
            return
        received = _received_view[:nbytes]
        if self._established and not (self.paused or self.closing):
            self._decrypt(received)
            return
        self._incoming.write(received)
        if not self._established:
            self._shake_hands()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._established:
            self.protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._established:
            self.protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._deadline.cancel()
        self._end_drain()
        if self._established:
            self.protocol.connection_lost(exc)
        else:
            self._handshake_ended(exc or ConnectionResetError("closed during the TLS handshake"))

    # Handshake

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(error)
            return
        self._flush()
        self._deadline.cancel()
        self._established = True
        extra = {"ssl_object": self._ssl, "sslcontext": self._ssl.context}
        self.upper = TLSTransport(self, extra)
        self.protocol.connection_made(self.upper)
        self._handshake_ended(None)
        self._decrypt()

    def _too_late(self) -> None:
        self._fail(TimeoutError(f"no TLS handshake within {self._handshake_timeout:g} s"))

    def _fail(self, error: Exception) -> None:
        self._handshake_ended(error)
        self.transport.close()

    def _handshake_ended(self, error: Exception | None) -> None:
        told, self._on_handshake = self._on_handshake, None
        if told is not None:
            told(error)

    # Records

    def encrypt(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing or not data:
            return
        if len(data) <= RECORD_SIZE:
            self._ssl.write(data)
            self._flush()
            return
        view = memoryview(data)
        records = []
        for start in range(0, len(view), RECORD_SIZE):
            self._ssl.write(view[start : start + RECORD_SIZE])
            records.append(self._outgoing.read())
        if not self.transport.is_closing():
            self.transport.write(b"".join(records))

    def _decrypt(self, received: memoryview = _nothing) -> None:
        """Hand on what `received` completes, and what had come before."""
        incoming = self._incoming
        size = 0 if received else self._read_records(0)
        for start in range(0, len(received), RECORD_SIZE):
            incoming.write(received[start : start + RECORD_SIZE])
            size = self._read_records(size)
        while size:
            self.protocol.data_received(bytes(_decrypted_view[:size]))
            size = self._read_records(0) if incoming.pending and not self.paused else 0
        self._flush()
        if self._ended and not (self.paused or self.closing):
            self.protocol.eof_received()
            self.close()

    def _read_records(self, size: int) -> int:
        """Decrypt behind the first `size` octets of the shared buffer; how many there are then.

        There is always room for a whole record, so OpenSSL keeps none back.
        """
        if self._ended or self.closing:
            return size
        try:
            while self._incoming.pending and size <= READ_SIZE:
                count = self._read_into(_decrypted_view[size:])
                if not count:
                    self._ended = True
                    break
                size += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            logger.debug("%r: %s", self, error)
            self.abort()
        return size

    def _read_into(self, buffer: memoryview) -> int:
        # With a buffer to fill it gives the count (0 is close_notify); the stubs know only
        # the other form.
        return cast(int, self._ssl.read(len(buffer), buffer))

    def _flush(self) -> None:
        if self._outgoing.pending and not self.transport.is_closing():
            self.transport.write(self._outgoing.read())

    # What `TLSTransport` offers

    def pause_reading(self) -> None:
        self.paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.paused:
            return
        self.paused = False
        if self._incoming.pending:
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self.paused or self.closing:
            return
        self._decrypt()
        if not (self.paused or self.closing):
            self.transport.resume_reading()

    def close(self) -> None:
        """Say close_notify, and wait a little for the other end to have taken all of it."""
        if self.closing:
            return
        self.closing = True
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()  # writes ours, complains that the other end's has not come yet
        self._flush()
        if self.transport.is_closing():
            return
        if self._ended or not self.transport.can_write_eof():
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
        self.closing = True
        self.transport.abort()

    def _end_drain(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None


class Accepting(_Wire):
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
    transport.set_protocol(_Fed(wire))
    wire.connection_made(transport)
    return await _established(wire, done, transport)


class _Fed(asyncio.Protocol):
    """Lets a transport that gives bytes feed a wire, which wants them in its buffer."""

    takes_views = True

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self.eof_received = wire.eof_received  # type: ignore[method-assign]
        self.pause_writing = wire.pause_writing  # type: ignore[method-assign]
        self.resume_writing = wire.resume_writing  # type: ignore[method-assign]
        self.connection_lost = wire.connection_lost  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        view = memoryview(data)
        for begin in range(0, len(view), READ_SIZE):
            piece = view[begin : begin + READ_SIZE]
            self._wire.get_buffer(len(piece))[: len(piece)] = piece
            self._wire.buffer_updated(len(piece))


def _client_wire(
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    server_hostname: str,
    handshake_timeout: float,
) -> tuple[_Wire, asyncio.Future[None]]:
    """A client's wire, and the future that its handshake ends."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    wire = _Wire(
        protocol,
        context,
        server_side=False,
        server_hostname=server_hostname,
        handshake_timeout=handshake_timeout,
        on_handshake=ended,
    )
    return wire, done


async def _established(
    wire: _Wire, done: asyncio.Future[None], plain: asyncio.Transport
) -> asyncio.Transport:
    try:
        await done
    except BaseException:
        plain.abort()
        raise
    assert wire.upper is not None
    return wire.upper
