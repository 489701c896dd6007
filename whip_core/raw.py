"""A reverse connection to an old peer: after the preamble it is one stream's bare bytes.

Over plain TCP the directions end separately. Over TLS the end of either ends both, as it
always did there; a connection that goes without TLS's own end (close_notify) is a cut. There
are no pings: that the path is dead the kernels alone can tell, as of a framed stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from whip_core.drain import BoundedDrain
from whip_core.heartbeat import Heartbeat
from whip_core.sockets import abort_with_reset, duplex, keep_alive, unanswered_for
from whip_core.stream import Stream, broken, cut


class RawConnection(asyncio.Protocol):
    """Carries the one stream it was opened for, `stream`, from `connection_made` on."""

    stream: Stream

    def __init__(
        self,
        dial_id: str,
        *,
        extra: Mapping[str, Any],
        on_finished: Callable[[Stream], None] | None = None,
    ) -> None:
        self._dial_id = dial_id
        self._extra = dict(extra)
        self._on_finished = on_finished
        self._transport: asyncio.Transport | None = None
        self._we_ended = False
        self._peer_ended = False
        self._drain: BoundedDrain | None = None
        self._heartbeat: Heartbeat | None = None
        self.can_half_close = True
        self.write_paused = False

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def close(self) -> None:
        """Close the connection; a stream that is still open on it is cut."""
        self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = duplex(transport)
        keep_alive(transport)
        self._heartbeat = Heartbeat(
            lambda: False, None, self._give_up, lambda: unanswered_for(transport)
        )
        self.can_half_close = self.transport.can_write_eof()
        if not self.can_half_close:
            # asyncio's StreamReaderProtocol looks at this to know that an end ends both.
            self._extra["sslcontext"] = transport.get_extra_info("sslcontext")
        self.stream = Stream(self, self._dial_id, self._extra, self._on_finished)
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._drain is not None:
            self._drain.discard(len(data))
        else:
            self.stream.data_arrived(data)

    def eof_received(self) -> bool:
        # Reading that is resumed after an end finds that end again.
        again, self._peer_ended = self._peer_ended, True
        if self._drain is not None:
            return False
        if not again:
            self.stream.end_arrived()
        return self.can_half_close and not self._we_ended

    def pause_writing(self) -> None:
        self.write_paused = True
        self.stream.writing_paused()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.stream.writing_resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_drain()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if exc is not None:
            self.stream.finished("reset", broken(str(exc)))
        elif self._peer_ended or self.stream.is_closing():
            self.stream.finished("end", None)
        else:
            self.stream.finished("cut", cut("closed without an end"))

    def _give_up(self, why: str) -> None:
        self.stream.finished("cut", cut(why))
        self.transport.abort()

    def _end_drain(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    # The carrier's side (`stream.Carrier`)

    def send_data(self, stream: Stream, data: bytes | memoryview) -> None:
        self.transport.write(data)

    def send_end(self, stream: Stream) -> None:
        self._we_ended = True
        if self._peer_ended:
            self.transport.close()
        else:
            self.transport.write_eof()

    def close_stream(self, stream: Stream) -> None:
        if self.can_half_close and not self._peer_ended:
            self._drain = BoundedDrain(self.transport, stream.stop_waiting)
            self.transport.resume_reading()
        else:
            self.transport.close()

    def reset_stream(self, stream: Stream, why: str) -> None:
        self._end_drain()
        abort_with_reset(self.transport)

    def pause_reading(self, stream: Stream) -> None:
        self.transport.pause_reading()

    def resume_reading(self, stream: Stream) -> None:
        self.transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self.transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None, low: int | None) -> None:
        self.transport.set_write_buffer_limits(high, low)
