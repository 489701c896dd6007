"""Frames on a reverse connection, without I/O: bytes in, events out; calls in, bytes out.

A frame is one byte of type, three bytes of length (big endian) and a body. The broker is
the *opener*: it alone starts streams. The agent is the *acceptor*. One stream at a time:

- A parked connection carries nothing but PING and PONG until the opener sends OPEN.
- The acceptor answers OPENED, and bytes may flow both ways; or FAILED, and the connection
  is parked again.
- Each direction ends with END, after which its sender sends no more DATA. When both have
  ended, the connection is parked again. The two ENDs may cross on the way.
- RESET, by either side at any time, breaks the stream, and the connection with it.
- OPENED, FAILED and END repeat the dial's id. A foreign id, an unknown type or a frame
  that the state does not allow is a `RemoteProtocolError`, after which the connection is
  of no use: two users' streams follow each other here, so there is no benefit of the doubt.

A broker's dial socket speaks the same frames, by the same table: there the dialling program
is the opener and the broker the acceptor. OPEN carries the name that is dialled, and with it
what the dial needs besides (`dial_wire`); OPENED tells who serves it. Both may be longer there.

The table below says the same. Both sides hold it, each with its own view of the state;
frames in flight cannot break it, because only OPEN leaves PARKED and only the opener
sends that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NoReturn

from whip_core.errors import LocalProtocolError, RemoteProtocolError
from whip_core.names import printable

HEADER_SIZE = 4
MAX_DATA_SIZE = 256 * 1024
"""Octets of one DATA frame: large enough that the header costs nothing, small enough
that a PING waiting behind it is answered soon."""
MAX_CONTROL_SIZE = 2048
"""Octets of any other frame: an id, a name and a sentence fit."""
MAX_ASK_SIZE = 128 * 1024
"""Octets of OPEN and OPENED on a dial socket: all headers of any request that a proxy takes."""
MAX_REASON_SIZE = 1024
"""Octets of the text in FAILED and RESET; longer texts are cut."""
COPIED_SIZE = 16 * 1024
"""Octets of a body up to which a copy costs less than a view into what it came in."""
DIAL_ID_SIZE = 16
"""Octets of a dial's id: 128 random bits, so that no peer can guess another's."""
PING_SIZE = 8


class Side(Enum):
    OPENER = "opener"
    ACCEPTOR = "acceptor"


class FrameType(IntEnum):
    """0x01 is the preamble (`preamble`), which comes before all frames."""

    OPEN = 0x02
    OPENED = 0x03
    FAILED = 0x04
    DATA = 0x05
    END = 0x06
    RESET = 0x07
    PING = 0x08
    PONG = 0x09


class State(IntEnum):
    """An IntEnum, because these are looked up with every frame: an int's hash is cheap."""

    PARKED = 0
    OPENING = 1
    OPEN = 2
    OPENER_ENDED = 3
    ACCEPTOR_ENDED = 4
    CLOSED = 5

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")


class FailureCode(IntEnum):
    """Why an agent could not open a stream."""

    SERVICE_REFUSED = 1
    PORT_NOT_EXPOSED = 2
    DRAINING = 3


_OPENER, _ACCEPTOR = Side.OPENER, Side.ACCEPTOR
_DATA = int(FrameType.DATA)
_EMPTY_DATA_HEADER = _DATA << 24
_FRAME_TYPES = {int(frame_type): frame_type for frame_type in FrameType}

TRANSITIONS: dict[State, dict[tuple[Side, FrameType], State]] = {
    State.PARKED: {
        (_OPENER, FrameType.OPEN): State.OPENING,
    },
    State.OPENING: {
        (_ACCEPTOR, FrameType.OPENED): State.OPEN,
        (_ACCEPTOR, FrameType.FAILED): State.PARKED,
    },
    State.OPEN: {
        (_OPENER, FrameType.DATA): State.OPEN,
        (_ACCEPTOR, FrameType.DATA): State.OPEN,
        (_OPENER, FrameType.END): State.OPENER_ENDED,
        (_ACCEPTOR, FrameType.END): State.ACCEPTOR_ENDED,
    },
    State.OPENER_ENDED: {
        (_ACCEPTOR, FrameType.DATA): State.OPENER_ENDED,
        (_ACCEPTOR, FrameType.END): State.PARKED,
    },
    State.ACCEPTOR_ENDED: {
        (_OPENER, FrameType.DATA): State.ACCEPTOR_ENDED,
        (_OPENER, FrameType.END): State.PARKED,
    },
    State.CLOSED: {},
}
"""state: {(who sends, what): next state}. PING and PONG change nothing, RESET always closes."""

for _state in set(State) - {State.CLOSED}:
    for _side in Side:
        TRANSITIONS[_state] |= {
            (_side, FrameType.PING): _state,
            (_side, FrameType.PONG): _state,
            (_side, FrameType.RESET): State.CLOSED,
        }

_BY_SENDER: dict[Side, dict[State, dict[int, State]]] = {
    side: {
        state: {int(what): after for (sender, what), after in moves.items() if sender is side}
        for state, moves in TRANSITIONS.items()
    }
    for side in Side
}


@dataclass(slots=True)
class OpenRequested:
    port: int
    dial_id: bytes
    name: str
    """Empty between broker and agent, where the connection says whose it is. On a dial
    socket the name that is dialled and what `dial_wire` puts behind it."""


@dataclass(slots=True)
class Opened:
    told: str = ""
    """Who serves the dial, as a dial socket tells it; empty between broker and agent."""


@dataclass(slots=True)
class OpenFailed:
    code: int
    why: str


@dataclass(slots=True)
class DataReceived:
    data: bytes | memoryview
    """A piece of the stream, of any size; a memoryview looks into bytes that never change."""


@dataclass(slots=True)
class EndReceived:
    pass


@dataclass(slots=True)
class ResetReceived:
    why: str


@dataclass(slots=True)
class PingReceived:
    payload: bytes


@dataclass(slots=True)
class PongReceived:
    payload: bytes


Event = (
    OpenRequested
    | Opened
    | OpenFailed
    | DataReceived
    | EndReceived
    | ResetReceived
    | PingReceived
    | PongReceived
)


class FrameCodec:
    """One side of a reverse connection, or of one to a dial socket.

    `state`, to read only, is its view of the table above.
    """

    def __init__(self, side: Side, *, dial_socket: bool = False) -> None:
        self.side = side
        self._dial_socket = dial_socket
        self._sender_table = _BY_SENDER[side]
        self._receiver_table = _BY_SENDER[_ACCEPTOR if side is _OPENER else _OPENER]
        self.dial_id = b""
        self._enter(State.PARKED)
        self._partial = bytearray()
        self._data_left = 0
        self._pings: list[bytes] = []

    def __repr__(self) -> str:
        return f"<FrameCodec {self.side.value} {self.state.words} dial={self.dial_id.hex()}>"

    def _enter(self, state: State) -> None:
        self.state = state
        self._may_send = self._sender_table[state]
        self._may_receive = self._receiver_table[state]

    def close(self) -> None:
        """The connection is gone: nothing may be sent or received any more."""
        self._enter(State.CLOSED)

    # Sending: each returns the bytes to put on the wire, or raises `LocalProtocolError`.

    def open(self, port: int, dial_id: bytes, name: str = "") -> bytes:
        if len(dial_id) != DIAL_ID_SIZE:
            raise LocalProtocolError(f"a dial id has {DIAL_ID_SIZE} bytes")
        body = port.to_bytes(2, "big") + dial_id + name.encode()
        if len(body) > MAX_CONTROL_SIZE and len(body) > self._most(FrameType.OPEN):
            raise LocalProtocolError(
                f"a dial's facts take {len(body)} bytes (at most {self._most(FrameType.OPEN)})"
            )
        self._send(FrameType.OPEN)
        self.dial_id = dial_id
        return _frame(FrameType.OPEN, body)

    def opened(self, told: str = "") -> bytes:
        self._send(FrameType.OPENED)
        return _frame(FrameType.OPENED, self.dial_id + told.encode())

    def failed(self, code: int, why: str) -> bytes:
        self._send(FrameType.FAILED)
        return _frame(FrameType.FAILED, self.dial_id + bytes([code]) + _cut(why))

    def data_header(self, size: int) -> bytes:
        """The header of a DATA frame; its `size` bytes of body must follow."""
        if not 0 < size <= MAX_DATA_SIZE:
            raise LocalProtocolError(f"DATA of {size} bytes (1 to {MAX_DATA_SIZE})")
        if _DATA not in self._may_send:
            self._send(FrameType.DATA)
        return (_EMPTY_DATA_HEADER | size).to_bytes(HEADER_SIZE, "big")

    def end(self) -> bytes:
        self._send(FrameType.END)
        return _frame(FrameType.END, self.dial_id)

    def reset(self, why: str) -> bytes:
        self._send(FrameType.RESET)
        return _frame(FrameType.RESET, _cut(why))

    def ping(self, payload: bytes) -> bytes:
        if len(payload) != PING_SIZE:
            raise LocalProtocolError(f"a ping has {PING_SIZE} bytes")
        self._send(FrameType.PING)
        self._pings.append(payload)
        return _frame(FrameType.PING, payload)

    def pong(self, payload: bytes) -> bytes:
        self._send(FrameType.PONG)
        return _frame(FrameType.PONG, payload)

    def _send(self, frame_type: FrameType) -> None:
        after = self._may_send.get(frame_type)
        if after is None:
            raise LocalProtocolError(
                f"{frame_type.name} cannot be sent by the {self.side.value} "
                f"of a connection that is {self.state.words}"
            )
        if after is not self.state:
            self._enter(after)

    # Receiving

    def only_data(self, data: bytes) -> bytes | memoryview | None:
        """The stream's bytes, if `data` is one whole DATA frame or lies inside of one.

        None if it is anything else, or not allowed: `receive` must be given it then. This
        is what nearly every read brings, and there is no quicker way to take it.
        """
        left, size = self._data_left, len(data)
        if left:
            if size > left:
                return None
            self._data_left = left - size
            return data
        size -= HEADER_SIZE
        if (
            not 0 < size <= MAX_DATA_SIZE
            or not data.startswith((_EMPTY_DATA_HEADER | size).to_bytes(HEADER_SIZE, "big"))
            or _DATA not in self._may_receive
            or self._partial
        ):
            return None
        return data[HEADER_SIZE:] if size <= COPIED_SIZE else memoryview(data)[HEADER_SIZE:]

    def receive(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order.

        Raises `RemoteProtocolError`, with the state CLOSED and the events of this call
        dropped: what cannot be trusted from some byte on is not half trusted.
        """
        events: list[Event] = []
        position, size = 0, len(data)
        view = memoryview(data)
        try:
            while position < size:
                if self._data_left:
                    taken = min(self._data_left, size - position)
                    self._data_left -= taken
                    whole = taken == size
                    piece = data if whole else view[position : position + taken]
                    events.append(DataReceived(piece))
                    position += taken
                elif (
                    data[position] == _DATA
                    and _DATA in self._may_receive
                    and not self._partial
                    and size - position >= HEADER_SIZE
                ):
                    # Its body goes on as it comes, whether all of it is here or not.
                    length = int.from_bytes(data[position + 1 : position + HEADER_SIZE], "big")
                    self._data_left = _checked_size(length)
                    position += HEADER_SIZE
                else:
                    position += self._receive_frame(view[position:], events)
        except RemoteProtocolError:
            self.close()
            raise
        return events

    def _receive_frame(self, view: memoryview, events: list[Event]) -> int:
        """Take what belongs to one frame's header or small body; how much that was."""
        partial = self._partial
        if partial or len(view) < HEADER_SIZE:
            return self._complete(view, events)
        frame_type, length = self._header(view)
        whole = HEADER_SIZE + length
        if len(view) < whole:
            partial += view
            return len(view)
        events.append(self._parse(frame_type, bytes(view[HEADER_SIZE:whole])))
        return whole

    def _complete(self, view: memoryview, events: list[Event]) -> int:
        """Go on with a frame of which too little has come; how much of `view` it took."""
        partial = self._partial
        taken = min(max(HEADER_SIZE - len(partial), 0), len(view))
        partial += view[:taken]
        if len(partial) < HEADER_SIZE:
            return taken
        frame_type, length = self._header(memoryview(bytes(partial[:HEADER_SIZE])))
        if frame_type is FrameType.DATA:
            partial.clear()
            self._data_left = length
            return taken
        missing = HEADER_SIZE + length - len(partial)
        body = view[taken : taken + missing]
        partial += body
        if len(body) == missing:
            whole = bytes(partial[HEADER_SIZE:])
            partial.clear()
            events.append(self._parse(frame_type, whole))
        return taken + len(body)

    def _header(self, view: memoryview) -> tuple[FrameType, int]:
        number, length = view[0], int.from_bytes(view[1:HEADER_SIZE], "big")
        if number not in self._may_receive:
            self._reject(number)
        frame_type = _FRAME_TYPES[number]
        if frame_type is FrameType.DATA:
            _checked_size(length)
        elif length > MAX_CONTROL_SIZE and length > self._most(frame_type):
            raise RemoteProtocolError(
                f"{frame_type.name} of {length} bytes (at most {self._most(frame_type)})"
            )
        return frame_type, length

    def _most(self, frame_type: FrameType) -> int:
        """Octets that a frame of this type may have."""
        carries_facts = frame_type in (FrameType.OPEN, FrameType.OPENED)
        return MAX_ASK_SIZE if self._dial_socket and carries_facts else MAX_CONTROL_SIZE

    def _reject(self, number: int) -> NoReturn:
        if number not in _FRAME_TYPES:
            raise RemoteProtocolError(f"unknown frame type {number:#04x}")
        raise RemoteProtocolError(
            f"the peer sent {FrameType(number).name} on a connection that is {self.state.words}"
        )

    def _parse(self, frame_type: FrameType, body: bytes) -> Event:
        """Read a frame that may be received, and enter the state that is after it."""
        after = self._may_receive[frame_type]
        if after is not self.state:
            self._enter(after)
        match frame_type:
            case FrameType.OPEN:
                if len(body) < 2 + DIAL_ID_SIZE:
                    raise RemoteProtocolError(f"OPEN of {len(body)} bytes")
                self.dial_id = body[2 : 2 + DIAL_ID_SIZE]
                name = body[2 + DIAL_ID_SIZE :].decode(errors="replace")
                return OpenRequested(int.from_bytes(body[:2], "big"), self.dial_id, name)
            case FrameType.OPENED:
                end = DIAL_ID_SIZE if self._dial_socket else len(body)
                self._check_id(frame_type, body[:end])
                return Opened(body[end:].decode(errors="replace"))
            case FrameType.FAILED:
                self._check_id(frame_type, body[:DIAL_ID_SIZE])
                code = body[DIAL_ID_SIZE] if len(body) > DIAL_ID_SIZE else 0
                return OpenFailed(code, _text(body[DIAL_ID_SIZE + 1 :]))
            case FrameType.END:
                self._check_id(frame_type, body)
                return EndReceived()
            case FrameType.RESET:
                return ResetReceived(_text(body))
            case FrameType.PING:
                if len(body) != PING_SIZE:
                    raise RemoteProtocolError(f"PING of {len(body)} bytes")
                return PingReceived(body)
            case FrameType.PONG:
                if not self._pings or self._pings.pop(0) != body:
                    raise RemoteProtocolError("PONG without its PING")
                return PongReceived(body)
            case _:
                raise AssertionError(frame_type)

    def _check_id(self, frame_type: FrameType, dial_id: bytes) -> None:
        if dial_id != self.dial_id:
            raise RemoteProtocolError(f"{frame_type.name} with another dial's id")


def _checked_size(length: int) -> int:
    if not 0 < length <= MAX_DATA_SIZE:
        raise RemoteProtocolError(f"DATA of {length} bytes (1 to {MAX_DATA_SIZE})")
    return length


def _frame(frame_type: FrameType, body: bytes) -> bytes:
    return (frame_type << 24 | len(body)).to_bytes(HEADER_SIZE, "big") + body


def _text(body: bytes) -> str:
    return printable(body.decode(errors="replace"), MAX_REASON_SIZE)


def _cut(text: str) -> bytes:
    return text.encode(errors="replace")[:MAX_REASON_SIZE]
