"""Two asyncio transports joined in memory: a connection without a socket.

Each behaves as the transport of a TCP connection does: bytes arrive in order and in pieces,
each direction ends by itself, a reader that pauses holds up the writer (whose
`pause_writing` is called), a connection closed while the peer still sends is a reset to it.
What a socket's buffers would hold stays in the writer's buffer, so `get_write_buffer_size`
is exactly what has been written and not yet received.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

READ_SIZE = 64 * 1024
"""Octets that a protocol is given at once, at most."""
HIGH_WATER = 64 * 1024
"""Octets above which a writer is paused: asyncio's own default."""


def memory_pair(
    one: asyncio.Protocol,
    other: asyncio.Protocol,
    *,
    half_close: bool = True,
    read_size: int = READ_SIZE,
    extra: Mapping[str, Any] | None = None,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Connect two protocols: what one writes, the other receives.

    Both have had `connection_made` when this returns; everything after comes from the
    running event loop, never from inside a call. Without `half_close` the pair is like TLS:
    `can_write_eof` is False, and the end of either direction ends both. A `read_size` of 1
    shows a protocol every byte by itself. `extra` is what `get_extra_info` knows.
    """
    first = MemoryTransport(one, half_close, read_size, extra or {})
    second = MemoryTransport(other, half_close, read_size, extra or {})
    first._peer, second._peer = second, first
    for transport in (first, second):
        transport.get_protocol().connection_made(transport)
    return first, second


class MemoryTransport(asyncio.Transport):
    """One end of a `memory_pair`."""

    _peer: MemoryTransport

    def __init__(
        self,
        protocol: asyncio.Protocol,
        half_close: bool,
        read_size: int,
        extra: Mapping[str, Any],
    ) -> None:
        super().__init__(dict(extra))
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._half_close = half_close
        self._read_size = read_size
        self._unsent = bytearray()
        self._high = HIGH_WATER
        self._low = HIGH_WATER // 4
        self._writing_paused = False
        self._reading_paused = False
        self._ending = False  # an end follows what is unsent
        self._ended = False  # the peer has taken that end
        self._closing = False
        self._lost = False
        self._pump_is_due = False

    def __repr__(self) -> str:
        state = "lost" if self._lost else "closing" if self._closing else "open"
        return f"<MemoryTransport {state} unsent={len(self._unsent)}>"

    def get_protocol(self) -> asyncio.Protocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    # Writing

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Raises `RuntimeError` after `write_eof`; after `close` the data is dropped."""
        if self._ending and not self._closing:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._closing or not data:
            return
        self._unsent += data
        self._adjust_flow()
        self._peer._pump_soon()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return self._half_close

    def write_eof(self) -> None:
        if not self._half_close:
            raise NotImplementedError("this pair ends in both directions at once")
        if not self._closing:
            self._ending = True
            self._peer._pump_soon()

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high, self._low = high, low
        self._adjust_flow()

    def _adjust_flow(self) -> None:
        if not self._writing_paused and len(self._unsent) > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()
        elif self._writing_paused and len(self._unsent) <= self._low and not self._lost:
            self._writing_paused = False
            self._protocol.resume_writing()

    # Reading

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._pump_soon()

    def is_reading(self) -> bool:
        return not (self._reading_paused or self._closing)

    def _pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Take one piece, or the end, of what the peer has written."""
        self._pump_is_due = False
        writer = self._peer
        if self._lost and writer._unsent:
            writer._lose(ConnectionResetError("the peer has closed and reads no more"))
        if self._closing or self._reading_paused or writer._ended:
            return
        if writer._unsent:
            piece = bytes(writer._unsent[: self._read_size])
            del writer._unsent[: self._read_size]
            self._protocol.data_received(piece)
            writer._adjust_flow()
            writer._finish_closing()
        if writer._unsent:
            self._pump_soon()
        elif writer._ending and self.is_reading():
            writer._ended = True
            if not (self._protocol.eof_received() and self._half_close):
                self.close()

    # Ending

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Read no more; `connection_lost` when the peer has taken all that was written."""
        if not self._closing:
            self._closing = self._ending = True
            self._peer._pump_soon()
            self._loop.call_soon(self._finish_closing)

    def _finish_closing(self) -> None:
        if self._closing and not self._unsent and not self._lost:
            self._lose(None)
            self._pump_soon()  # finds what the peer has written, and will not be read

    def abort(self) -> None:
        """Go now, dropping what is unsent. The peer sees a reset, never an end."""
        if not self._lost:
            self._break(None, ConnectionResetError("the peer aborted the connection"))

    def cut(self) -> None:
        """Lose the connection at both ends, without an end and without an error."""
        self._break(None, None)

    def reset(self) -> None:
        """Lose the connection at both ends with `ConnectionResetError`."""
        error = ConnectionResetError("the connection was reset")
        self._break(error, error)

    def _break(self, own: Exception | None, peers: Exception | None) -> None:
        self._lose(own)
        self._peer._lose(peers)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = self._closing = True
            self._unsent.clear()
            self._loop.call_soon(self._protocol.connection_lost, error)
