"""The server's end of gRPC on one HTTP/2 connection, without I/O: bytes in, events out.

HTTP/2 with its flow control and its bounds (100 calls, 64 KiB of headers) is h2's. What is
added is gRPC's part of it (its PROTOCOL-HTTP2 document): five octets before each message, and
a status in the trailers. One method is offered, with a stream of messages each way:

    call      begins with the headers of a POST to the method's path -> `CallBegan`
    messages  either way, in any order -> `MessageArrived`; `send`
    end       of the client's messages, or a call that breaks -> `CallEnded`; `end`

Compressed messages are refused, as gRPC lets a server do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from h2 import events as http2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from whip_core.errors import RemoteProtocolError

# gRPC's numbers for how a call ended.
OK = 0
INVALID_ARGUMENT = 3
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
ABORTED = 10
UNIMPLEMENTED = 12
UNAVAILABLE = 14

MAX_UNSENT = 1024 * 1024
"""Octets that may wait for a peer that does not read: any burst of dials."""

_PREFIX_SIZE = 5
"""Octets before each message: whether it is compressed, and four of its length."""
_ANSWER = [(":status", "200"), ("content-type", "application/grpc")]
_TEXT = " !#$&'()*+,/:;=?@[]\"<>\\^`{|}~-._"
"""What a status text may have besides letters and digits; the rest is percent-encoded."""
_CONFIG = H2Configuration(client_side=False, header_encoding=None)

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class CallBegan:
    call: int


@dataclass(frozen=True, slots=True)
class MessageArrived:
    call: int
    message: bytes


@dataclass(frozen=True, slots=True)
class CallEnded:
    """Nothing more comes of a call; `broken` says why, unless the client had said it all."""

    call: int
    broken: str = ""


Event = CallBegan | MessageArrived | CallEnded


@dataclass(slots=True)
class _Call:
    partial: bytes = b""
    """The beginning of a message of which not all has come."""
    answered: bool = False
    """Whether our headers were sent."""
    client_ended: bool = False
    unsent: deque[bytes] | None = None
    """Kept only while something waits: a deque takes 760 octets when it is empty, too."""
    unsent_size: int = 0
    trailers: Headers = field(default_factory=list)
    """What ends the call behind what is unsent. Nothing is heard of it any more."""


class GrpcCalls:
    """One connection. After each call of a method `to_send` has what the peer is to get.

    `path` is the method's; messages of more than `max_message` octets end their call.
    """

    def __init__(self, path: str, max_message: int) -> None:
        self._path = path.encode()
        self._max_message = max_message
        self._calls: dict[int, _Call] = {}
        self._http2 = H2Connection(_CONFIG)
        self._http2.initiate_connection()
        self._reset: set[int] = set()
        self._left = False
        self.held = False
        """While it is set, messages wait as for a peer that does not read."""

    def to_send(self) -> bytes:
        data: bytes = self._http2.data_to_send()
        return data

    # What comes in

    def receive(self, data: bytes) -> Iterator[Event]:
        """What `data` says. Raises `RemoteProtocolError`; then nothing more can be read.

        After the peer's goodbye nothing is read: h2 takes any frame then for a mistake.
        """
        if self._left:
            return
        try:
            heard = self._http2.receive_data(data)
        except ProtocolError as error:
            self._calls.clear()
            raise RemoteProtocolError(f"it does not speak HTTP/2: {error}") from error
        # h2 is at the end of `data` already: to a call that is gone there nothing can be sent any
        # more, while we still tell of what came before.
        self._reset = {each.stream_id for each in heard if isinstance(each, http2.StreamReset)}
        self._left = any(isinstance(each, http2.ConnectionTerminated) for each in heard)
        for event in heard:
            match event:
                case http2.DataReceived():
                    yield from self._data(event)
                case http2.RequestReceived():
                    yield from self._request(event)
                case http2.StreamEnded(stream_id=call) if call in self._calls:
                    self._calls[call].client_ended = True
                    if not self._calls[call].trailers:
                        yield CallEnded(call)
                case http2.StreamReset(stream_id=call):
                    yield from self._broken(call)
                case http2.ConnectionTerminated():
                    for call in tuple(self._calls):
                        yield from self._broken(call)
                case http2.WindowUpdated() | http2.RemoteSettingsChanged():
                    self._send_waiting()

    def _broken(self, call: int) -> Iterator[CallEnded]:
        state = self._calls.pop(call, None)
        if state is not None and not state.trailers:
            yield CallEnded(call, "it was broken off")

    def _request(self, event: http2.RequestReceived) -> Iterator[Event]:
        call, said = event.stream_id, dict(event.headers)
        self._calls[call] = _Call()
        path = said.get(b":path", b"")
        if not said.get(b"content-type", b"").startswith(b"application/grpc"):
            self._end(call, [(":status", "415")])
        elif path != self._path or said.get(b":method") != b"POST":
            self.end(call, UNIMPLEMENTED, f"no method {path[:80].decode(errors='replace')} is here")
        else:
            yield CallBegan(call)

    def _data(self, event: http2.DataReceived) -> Iterator[Event]:
        call = event.stream_id
        self._http2.acknowledge_received_data(event.flow_controlled_length, call)
        state = self._calls.get(call)
        if state is None or state.trailers:
            return
        data = state.partial + event.data
        start = 0
        while len(data) - start >= _PREFIX_SIZE:
            begin = start + _PREFIX_SIZE
            size = int.from_bytes(data[start + 1 : begin], "big")
            if data[start]:
                yield self._refuse(call, UNIMPLEMENTED, "compressed messages are not taken")
                return
            if size > self._max_message:
                text = f"a message of {size} octets, at most {self._max_message} are taken"
                yield self._refuse(call, RESOURCE_EXHAUSTED, text)
                return
            if len(data) - begin < size:
                break
            start = begin + size
            yield MessageArrived(call, data[begin:start])
            if call not in self._calls or state.trailers:  # who took it in has ended the call
                return
        state.partial = data[start:]

    def _refuse(self, call: int, status: int, text: str) -> CallEnded:
        self.end(call, status, text)
        return CallEnded(call, text)

    # What goes out

    def send(self, call: int, message: bytes) -> bool:
        """Send a message, behind those that wait; False, and it is not, if too many wait.

        Messages of a call that has ended are dropped.
        """
        state = self._calls.get(call)
        if state is None or state.trailers or self._is_gone(call):
            return True
        if not state.answered:
            state.answered = True
            self._http2.send_headers(call, _ANSWER)
        data = b"\0" + len(message).to_bytes(4, "big") + message
        if state.unsent is None:
            if not self.held and len(data) <= self._room(call):
                self._http2.send_data(call, data)
                return True
            state.unsent = deque()
        if state.unsent_size + len(data) > MAX_UNSENT:
            return False
        state.unsent.append(data)
        state.unsent_size += len(data)
        self._send_unsent(call, state)
        return True

    def end(self, call: int, status: int, text: str = "") -> None:
        """End a call, behind what waits to be sent; nothing that comes of it is heard any more."""
        state = self._calls.get(call)
        if state is None or state.trailers:
            return
        trailers = [("grpc-status", str(status))]
        if text:
            trailers.append(("grpc-message", quote(text, safe=_TEXT)))
        self._end(call, trailers if state.answered else _ANSWER + trailers)

    def _end(self, call: int, trailers: Headers) -> None:
        state = self._calls[call]
        state.trailers = trailers
        if state.unsent is None and not self._is_gone(call):
            self._send_trailers(call, state)

    def _is_gone(self, call: int) -> bool:
        return self._left or call in self._reset

    def release(self) -> None:
        """Hold messages back no more."""
        self.held = False
        self._send_waiting()

    def close(self) -> None:
        """Say that no more is read; whatever is open is gone."""
        self._calls.clear()
        self._http2.close_connection()

    def _room(self, call: int) -> int:
        """Octets that the peer takes of a call now, in one frame."""
        window: int = self._http2.local_flow_control_window(call)
        largest: int = self._http2.max_outbound_frame_size
        return min(window, largest)

    def _send_waiting(self) -> None:
        for call, state in tuple(self._calls.items()):
            if state.unsent is not None:
                self._send_unsent(call, state)

    def _send_unsent(self, call: int, state: _Call) -> None:
        unsent = state.unsent
        assert unsent is not None
        while unsent:
            room = 0 if self.held or self._is_gone(call) else self._room(call)
            if room <= 0:
                return
            data = unsent.popleft()
            if len(data) > room:
                unsent.appendleft(data[room:])
            self._http2.send_data(call, data[:room])
            state.unsent_size -= min(room, len(data))
        state.unsent = None
        if state.trailers:
            self._send_trailers(call, state)

    def _send_trailers(self, call: int, state: _Call) -> None:
        self._http2.send_headers(call, state.trailers, end_stream=True)
        if not state.client_ended:
            self._http2.reset_stream(call, ErrorCodes.NO_ERROR)  # nobody listens any more
        del self._calls[call]
