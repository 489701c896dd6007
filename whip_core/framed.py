"""A reverse connection that speaks frames: one stream at a time, parked in between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from whip_core import frames
from whip_core.drain import BoundedDrain
from whip_core.errors import (
    AgentGone,
    DialError,
    LocalProtocolError,
    PortNotExposed,
    RemoteProtocolError,
    ServiceRefused,
)
from whip_core.frames import FrameCodec, Side, State
from whip_core.heartbeat import Heartbeat
from whip_core.sockets import duplex, keep_alive, peer_address, unanswered_for
from whip_core.stream import Cause, Stream, broken, cut

JOIN_SIZE = 32 * 1024
"""Octets up to which a DATA frame's body is copied behind its header: one system call
costs more than such a copy. Above, the header goes out by itself."""
LINGER_TIMEOUT = 5.0
"""Seconds the peer has to take our RESET and close, before we do."""
MAX_PONGS_UNSENT = 16
"""Answers that may wait behind a stream's data: a peer that keeps pinging and
reads none of them is misbehaving."""
CANCELLED = "the dial was cancelled"
_CLOSED = State.CLOSED

OnOpen = Callable[["FramedConnection", frames.OpenRequested], asyncio.Task[Any]]
OnChange = Callable[["FramedConnection"], None]
Failure = Callable[[int, str], DialError]
"""The error for a FAILED frame's code and text."""


class Opening(Protocol):
    """Who is told the answer to an OPEN, in the turn in which it comes. A future is one."""

    def done(self) -> bool:
        """Whether nobody wants the answer any more."""

    def set_result(self, result: Stream, /) -> None: ...
    def set_exception(self, exception: DialError, /) -> None: ...


class FramedConnection(asyncio.Protocol):
    """Both ends' side of it; `side` says which.

    `on_open` (acceptor) is called for each OPEN and returns the task that will `accept` or
    `refuse`; it is cancelled if the connection goes first, and closes it if it fails. `on_idle`
    is called when a stream or a refused open has left the connection parked, `on_lost` when it
    is gone.
    `dial_socket` says that it is one to a broker's dial socket, `failure` how FAILED is read.
    """

    can_half_close = True
    transport: asyncio.Transport
    """From `connection_made` on."""
    reset_why = ""
    """What the peer said when it broke the connection, if it did."""

    def __init__(
        self,
        side: Side,
        *,
        on_open: OnOpen | None = None,
        on_idle: OnChange | None = None,
        on_lost: OnChange | None = None,
        dial_socket: bool = False,
        failure: Failure | None = None,
    ) -> None:
        self._codec = FrameCodec(side, dial_socket=dial_socket)
        self._give: Callable[[bytes | memoryview], None] = _drop
        self._failure = failure or _open_error
        self._whose = "the broker's" if dial_socket else "the agent's"
        self._on_open = on_open
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._peer_address: tuple[str, int] | None = None
        self._stream: Stream | None = None
        self._opening: Opening | None = None
        self._answering: asyncio.Task[Any] | None = None
        self._extra: Mapping[str, Any] = {}
        self._on_finished: Callable[[Stream], None] | None = None
        self._we_ended = False
        self._peer_ended = False
        self._drain: BoundedDrain | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._heartbeat: Heartbeat | None = None
        self._reading_paused = False
        self._has_limits = False
        self._pongs_unsent = 0
        self._inside_frame = False
        self.write_paused = False
        self.lost = False

    def __repr__(self) -> str:
        state = "lost" if self.lost else self._codec.state.words
        return f"<FramedConnection {self._codec.side.value} {state} {self._stream or ''}>"

    @property
    def is_parked(self) -> bool:
        """Whether the next dial may use it."""
        return self._codec.state is State.PARKED and self._stream is None and not self.lost

    @property
    def _is_broken(self) -> bool:
        """Whether nothing may be sent: a RESET was read, if not yet dealt with, or written."""
        return self._codec.state is _CLOSED

    @property
    def peer_address(self) -> tuple[str, int]:
        """Host and port of the other end."""
        if self._peer_address is None:
            self._peer_address = peer_address(self.transport)
        return self._peer_address

    def close(self) -> None:
        """Close the connection; a stream on it is cut."""
        if not self.lost:
            self.transport.close()

    # The opener's side

    async def open(
        self,
        port: int,
        dial_id: bytes,
        *,
        extra: Mapping[str, Any],
        on_finished: Callable[[Stream], None] | None = None,
        name: str = "",
    ) -> Stream:
        """Open a stream to the peer's `port`; a dial socket is told a `name` too.

        What it tells about the service is the stream's extra info "opened". Raises
        `ServiceRefused` or `PortNotExposed` if the peer says so (the connection is parked
        again), `AgentGone` if the connection is lost. Cancelled, it resets the connection:
        whatever the answer would have been, nobody gets it.
        """
        opening: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        self.start(opening, port, dial_id, extra=extra, on_finished=on_finished, name=name)
        try:
            return await opening
        except asyncio.CancelledError:
            self.give_up(opening)
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().reset(CANCELLED)
            raise

    def start(
        self,
        opening: Opening,
        port: int,
        dial_id: bytes,
        *,
        extra: Mapping[str, Any],
        on_finished: Callable[[Stream], None] | None = None,
        name: str = "",
    ) -> None:
        """The same for a caller that does not await: `opening` is told, unless given up before."""
        if self.lost:
            raise AgentGone(f"{self._whose} connection was lost")
        if not self.is_parked:
            raise LocalProtocolError(f"{self!r} is not parked")
        self._extra = extra
        self._on_finished = on_finished
        self.transport.write(self._codec.open(port, dial_id, name))
        self._opening = opening

    def give_up(self, opening: Opening) -> None:
        """Break the connection if `opening` still waits: nobody gets the answer any more."""
        if self._opening is opening:
            self._opening = None
            self._send_reset(CANCELLED)

    # The acceptor's side

    def accept(
        self,
        *,
        extra: Mapping[str, Any],
        on_finished: Callable[[Stream], None] | None = None,
        told: str = "",
    ) -> Stream:
        """Answer OPENED; the stream is open from here on. A dial socket tells who serves it."""
        self._answering = None
        self._extra = extra
        self._on_finished = on_finished
        self.transport.write(self._codec.opened(told))
        return self._start_stream()

    def refuse(self, code: int, why: str) -> None:
        """Answer FAILED; the connection is parked again."""
        self._answering = None
        self.transport.write(self._codec.failed(code, why))
        self._idle()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = duplex(transport)
        keep_alive(transport)
        ping = self._ping if self._codec.side is Side.OPENER else None
        self._heartbeat = Heartbeat(
            lambda: self.is_parked, ping, self._die, lambda: unanswered_for(transport)
        )

    def data_received(self, data: bytes) -> None:
        piece = self._codec.only_data(data)
        if piece is not None:
            self._give(piece)
        elif self._linger is None and self._heartbeat is not None:
            # Not for each piece of a stream: while one is open nobody judges by silence.
            self._heartbeat.heard()
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        try:
            events = self._codec.receive(data)
        except RemoteProtocolError as error:
            self._doubt(error)
            return
        for event in events:
            if self.lost or self._linger is not None:
                return
            self._handle(event)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._stream is not None and not self._inside_frame:
            self._stream.writing_paused()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._pongs_unsent = 0
        if self._stream is not None:
            self._stream.writing_resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._lose(cut("closed without an end"), "cut")
        else:
            self._lose(cut(str(exc)), "cut", may_lack_bytes=True)

    # Events

    def _handle(self, event: frames.Event) -> None:
        match event:
            case frames.DataReceived(data):
                self._give(data)
            case frames.EndReceived():
                self._peer_ended = True
                if self._stream is not None:
                    self._stream.end_arrived()
                self._finish_if_ended()
            case frames.OpenRequested():
                if self._on_open is None:
                    self._doubt(RemoteProtocolError("this end accepts no streams"))
                else:
                    self._answering = self._on_open(self, event)
                    self._answering.add_done_callback(self._close_unanswered)
            case frames.Opened(told):
                opening = self._take_opening()
                if told:
                    self._extra = {**self._extra, "opened": told}
                if opening is None:
                    self._send_reset(CANCELLED)
                else:
                    opening.set_result(self._start_stream())
            case frames.OpenFailed(code, why):
                self._fail_opening(self._failure(code, why))
                self._idle()
            case frames.ResetReceived(why):
                self.reset_why = why
                self._lose(broken(why), "reset")
                self.transport.abort()
            case frames.PingReceived(payload):
                self._answer_ping(payload)
            case frames.PongReceived():
                pass

    def _close_unanswered(self, answering: asyncio.Task[Any]) -> None:
        """Who opens must not wait for an answer that does not come."""
        if answering.cancelled() or answering.exception() is not None:
            self.close()

    def _start_stream(self) -> Stream:
        self._we_ended = self._peer_ended = False
        # Not paused: it holds back, and pauses, what comes before it has a protocol.
        stream = Stream(self, self._codec.dial_id.hex(), self._extra, self._on_finished)
        self._stream, self._give = stream, stream.data_arrived
        return stream

    def _take_stream(self) -> Stream | None:
        """The stream, which from here on is not ours any more."""
        stream, self._stream, self._give = self._stream, None, _drop
        return stream

    def _finish_if_ended(self) -> None:
        if not (self._we_ended and self._peer_ended):
            return
        stream = self._take_stream()
        if stream is None:
            return
        self._end_drain()
        if self._has_limits:
            self._has_limits = False
            self.transport.set_write_buffer_limits()
        self._resume()
        stream.finished("end", None)
        self._idle()

    def _idle(self) -> None:
        if self._on_idle is not None and self.is_parked:
            self._on_idle(self)

    def _take_opening(self) -> Opening | None:
        """The dial whose answer has come: from here on another may begin. None: cancelled."""
        opening, self._opening = self._opening, None
        return opening if opening is not None and not opening.done() else None

    def _fail_opening(self, error: DialError) -> None:
        opening = self._take_opening()
        if opening is not None:
            opening.set_exception(error)

    def _answer_ping(self, payload: bytes) -> None:
        if self._is_broken or self.transport.is_closing():
            return
        if self.write_paused:
            self._pongs_unsent += 1
            if self._pongs_unsent > MAX_PONGS_UNSENT:
                self._die("it pings and does not read the answers")
                return
        self.transport.write(self._codec.pong(payload))

    def _doubt(self, error: RemoteProtocolError) -> None:
        self._die(f"protocol error: {error}")

    def _die(self, why: str) -> None:
        self._lose(cut(why), "cut")
        self.transport.abort()

    def _ping(self) -> None:
        self.transport.write(self._codec.ping(os.urandom(frames.PING_SIZE)))

    def _send_reset(self, why: str) -> None:
        """Break whatever is open and let the connection go."""
        if self._is_broken:
            return
        self.transport.write(self._codec.reset(why))
        self._end_drain()
        self._resume()
        loop = asyncio.get_running_loop()
        self._linger = loop.call_later(LINGER_TIMEOUT, self.transport.abort)

    def _lose(self, error: Exception, cause: Cause, *, may_lack_bytes: bool = False) -> None:
        """What a broken transport did not send it has forgotten: it `may_lack_bytes`."""
        if self.lost:
            return
        self.lost = True
        self._codec.close()
        self._end_drain()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._linger is not None:
            self._linger.cancel()
        if self._answering is not None:
            self._answering.cancel()
        self._fail_opening(AgentGone(f"{self._whose} connection was lost: {error}"))
        stream = self._take_stream()
        if stream is not None:
            lacks_bytes = may_lack_bytes or self.transport.get_write_buffer_size()
            stream.finished(cause, None if stream.is_closing() and not lacks_bytes else error)
        if self._on_lost is not None:
            self._on_lost(self)

    def _end_drain(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    def _pause(self) -> None:
        if not self._reading_paused and not self.lost:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._reading_paused and not self.lost:
            self._reading_paused = False
            self.transport.resume_reading()

    # The carrier's side (`stream.Carrier`). A stream that is over has no say any more.

    def send_data(self, stream: Stream, data: bytes | memoryview) -> None:
        if stream is not self._stream or self._codec.state is _CLOSED:
            return
        size = len(data)
        if size <= JOIN_SIZE:
            self.transport.write(self._codec.data_header(size) + data)
            return
        view = memoryview(data)
        self._inside_frame = True
        for start in range(0, size, frames.MAX_DATA_SIZE):
            piece = view[start : start + frames.MAX_DATA_SIZE]
            # Not `writelines`: in Python 3.12 and 3.13.0 it never pauses the protocol.
            self.transport.write(self._codec.data_header(len(piece)))
            self.transport.write(piece)
        self._inside_frame = False
        if self.write_paused:
            # Only now: a stream that is aborted for it writes a frame.
            stream.writing_paused()

    def send_end(self, stream: Stream) -> None:
        if stream is self._stream and not self._is_broken:
            self.transport.write(self._codec.end())
            self._we_ended = True
            self._finish_if_ended()

    def close_stream(self, stream: Stream) -> None:
        if stream is self._stream and not (self._we_ended and self._peer_ended):
            drain = BoundedDrain(self.transport, stream.stop_waiting, at_once=True)
            self._drain, self._give = drain, lambda data: drain.discard(len(data))
            self._resume()

    def reset_stream(self, stream: Stream, why: str) -> None:
        if stream is self._stream:
            self._take_stream()
            self._send_reset(why)

    def pause_reading(self, stream: Stream) -> None:
        if stream is self._stream:
            self._pause()

    def resume_reading(self, stream: Stream) -> None:
        if stream is self._stream:
            self._resume()

    def get_write_buffer_size(self) -> int:
        return self.transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None, low: int | None) -> None:
        self._has_limits = True
        self.transport.set_write_buffer_limits(high, low)


def _drop(data: bytes | memoryview) -> None:
    """What still comes of a stream that is over here."""


def _open_error(code: int, why: str) -> DialError:
    if code == frames.FailureCode.PORT_NOT_EXPOSED:
        return PortNotExposed(why)
    if code == frames.FailureCode.DRAINING:
        return AgentGone(why)
    return ServiceRefused(why)
