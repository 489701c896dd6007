"""A stream to a service, as the `asyncio.Transport` that users and the relay are given.

The stream keeps asyncio's contract; a *carrier* moves the bytes: `framed` for peers of
ours, `raw` for old ones. A stream ends in exactly one of three ways, told apart as the
argument of the protocol's `connection_lost`:

- both directions have ended, or the user closed it: None
- the other end broke it: `StreamReset`
- the connection under it went away: `StreamCut`

An end of one direction alone is `eof_received`, and only ever a real end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, cast

from whip_core.errors import StreamCut, StreamReset

Cause = Literal["end", "reset", "cut"]


class Carrier(Protocol):
    """What a stream needs of the connection that carries it."""

    can_half_close: bool
    write_paused: bool

    def send_data(self, stream: Stream, data: bytes | memoryview) -> None: ...
    def send_end(self, stream: Stream) -> None: ...
    def close_stream(self, stream: Stream) -> None: ...
    def reset_stream(self, stream: Stream, why: str) -> None: ...
    def pause_reading(self, stream: Stream) -> None: ...
    def resume_reading(self, stream: Stream) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_write_buffer_limits(self) -> tuple[int, int]: ...
    def set_write_buffer_limits(self, high: int | None, low: int | None) -> None: ...


class Stream(asyncio.Transport):
    """One stream. Until `attach` gives it a protocol it holds back what arrives.

    A protocol with a true attribute `takes_views` is given memoryviews where that saves a
    copy; any other is given bytes. A protocol is asked for its `data_received` once, when
    it is set.
    """

    def __init__(
        self,
        carrier: Carrier,
        dial_id: str,
        extra: Mapping[str, Any],
        on_finished: Callable[[Stream], None] | None = None,
    ) -> None:
        self._extra: dict[str, Any] = dict(extra)
        super().__init__(self._extra)
        self.dial_id = dial_id
        self.bytes_sent = 0
        self.bytes_received = 0
        self.cause: Cause | None = None
        self._carrier = carrier
        self._protocol: asyncio.BaseProtocol | None = None
        self._deliver: Callable[[Any], None] | None = None
        # `_deliver` while nothing stands in the way of what arrives, else None: see `_route`.
        self._straight: Callable[[Any], None] | None = None
        self._on_finished = on_finished
        # What waits for a protocol, or for reading to be resumed. At most what one read of
        # the socket brought. None stands for the end of the peer's direction.
        self._held_back: deque[bytes | memoryview | None] = deque()
        self._attached = False
        self._paused = False
        self._writing_paused = False  # what the protocol was told
        self._closing = False
        self._end_sent = False
        self._error: Exception | None = None
        self._lost = False

    def __repr__(self) -> str:
        state = "lost" if self._lost else "closing" if self._closing else "open"
        return (
            f"<Stream {self.dial_id[:8]} {state} "
            f"sent={self.bytes_sent} received={self.bytes_received}>"
        )

    def describe(self, **extra: Any) -> None:
        """Add to what `get_extra_info` knows."""
        self._extra.update(extra)

    # The transport's face

    def attach(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the stream its first protocol: `connection_made`, then what had arrived."""
        self.set_protocol(protocol)
        protocol.connection_made(self)
        if self._carrier.write_paused:
            self.writing_paused()
        self._attached = True
        self._go_on_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        data_received = cast(asyncio.Protocol, protocol).data_received
        if getattr(protocol, "takes_views", False):
            self._deliver = data_received
        else:
            self._deliver = lambda data: data_received(bytes(data))
        self._route()

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._end_sent and not self._closing:
            raise RuntimeError("write() after write_eof()")
        if self._closing or self.cause is not None or not data:
            return
        if isinstance(data, bytearray):
            data = bytes(data)
        elif isinstance(data, memoryview) and data.itemsize != 1:
            data = data.cast("B")  # its length is in items, and counts on the wire
        self.bytes_sent += len(data)
        self._carrier.send_data(self, data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return self._carrier.can_half_close

    def write_eof(self) -> None:
        """End our direction; the other goes on. Where that cannot be, `NotImplementedError`."""
        if not self._carrier.can_half_close:
            raise NotImplementedError("an old peer's stream over TLS ends in both directions")
        if not (self._end_sent or self._closing or self.cause is not None):
            self._end_sent = True
            self._carrier.send_end(self)

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def close(self) -> None:
        """End our direction, drop what still comes; `connection_lost` when that is over."""
        if self._closing or self._lost:
            return
        self._closing = True
        self._held_back.clear()
        self._route()
        if self.cause is not None:
            self._deliver_lost()
            return
        if not self._end_sent and self._carrier.can_half_close:
            self._end_sent = True
            self._carrier.send_end(self)
        if self.cause is None:
            self._carrier.close_stream(self)

    def abort(self) -> None:
        """Break the stream now; the other end sees a reset or a cut, never an end."""
        self.reset("aborted")

    def reset(self, why: str, error: Exception | None = None) -> None:
        """Break the stream, telling the other end `why`; `error` is what our own side hears."""
        if self._lost:
            return
        self._closing = True
        self._held_back.clear()
        self._route()
        if self.cause is not None:
            self._deliver_lost()
            return
        self._carrier.reset_stream(self, why)
        self.finished("reset", error)

    def pause_reading(self) -> None:
        if not (self._paused or self.is_closing()):
            self._paused = True
            self._route()
            self._carrier.pause_reading(self)

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._go_on_reading()

    def _go_on_reading(self) -> None:
        self._route()
        if self._paused or not self._attached:
            return
        if self._held_back or self.cause is not None:
            # As in asyncio, never from inside the call that resumes: a StreamReader that is
            # given data there waits for it for ever.
            asyncio.get_running_loop().call_soon(self._deliver_held_back)
        else:
            self._carrier.resume_reading(self)

    def _route(self) -> None:
        """After each change: whether what arrives goes straight on, or has to wait.

        Decided here and not for each piece, of which there are many between two changes.
        """
        waits = self._paused or self._held_back or self._closing or not self._attached
        self._straight = None if waits else self._deliver

    def is_reading(self) -> bool:
        return not self._paused and not self.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._carrier.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._carrier.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self.cause is None:
            self._carrier.set_write_buffer_limits(high, low)

    # The carrier's face

    def data_arrived(self, data: bytes | memoryview) -> None:
        self.bytes_received += len(data)
        if self._straight is not None:
            self._straight(data)
        elif not self._closing:
            self._held_back.append(data)
            # Again, because uvloop has not heard a pause from within `connection_made`.
            self._carrier.pause_reading(self)

    def end_arrived(self) -> None:
        """The peer's direction has ended, truly."""
        if self._straight is not None:
            self._deliver_end()
        elif not self._closing:
            self._held_back.append(None)

    def finished(self, cause: Cause, error: Exception | None) -> None:
        """The carrier is done with this stream; `connection_lost` follows what is held back."""
        if self.cause is not None:
            return
        self.cause = cause
        self._error = error
        if self._on_finished is not None:
            self._on_finished(self)
        if not self._held_back and (self._attached or self._closing):
            self._deliver_lost()

    def stop_waiting(self) -> None:
        """The other end does not end, or take our last bytes, in time: break the stream."""
        unsent = self._carrier.get_write_buffer_size()
        error = cut(f"{unsent} bytes could not be sent") if unsent else None
        self.reset("closed while the other end was sending", error)

    def writing_paused(self) -> None:
        if self._protocol is not None and not (self._writing_paused or self._lost):
            self._writing_paused = True
            self._protocol.pause_writing()

    def writing_resumed(self) -> None:
        if self._protocol is not None and self._writing_paused and not self._lost:
            self._writing_paused = False
            self._protocol.resume_writing()

    # Delivery

    def _deliver_held_back(self) -> None:
        while self._held_back and not self._paused:
            event = self._held_back.popleft()
            if event is None:
                self._deliver_end()
            else:
                cast(Callable[[Any], None], self._deliver)(event)
        self._route()
        if self._held_back:
            return
        if self.cause is not None:
            self._deliver_lost()
        elif self.is_reading():
            self._carrier.resume_reading(self)

    def _deliver_end(self) -> None:
        keep_open = cast(asyncio.Protocol, self._protocol).eof_received()
        if not (keep_open and self._carrier.can_half_close):
            self.close()

    def _deliver_lost(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._closing = True
        if self._protocol is not None:
            # As in asyncio: never from inside the call that caused it.
            asyncio.get_running_loop().call_soon(self._tell_lost, self._protocol)

    def _tell_lost(self, protocol: asyncio.BaseProtocol) -> None:
        protocol.connection_lost(self._error)
        self._protocol = self._deliver = self._straight = None  # which refer back to this


def cut(why: str) -> StreamCut:
    return StreamCut(f"the connection to the other end was lost ({why}): the stream is incomplete")


def broken(why: str) -> StreamReset:
    return StreamReset(f"the other end broke the stream: {why}")
