"""What is fuzzed. An input's first octets choose state, side and pieces; the rest is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from whip_core.control_state import AGENT_SIDE, BROKER_SIDE, ControlState, RoundTrips, State
from whip_core.control_wire import decode_agent_message, decode_broker_message
from whip_core.errors import RemoteProtocolError
from whip_core.frames import (
    HEADER_SIZE,
    MAX_CONTROL_SIZE,
    DataReceived,
    FrameCodec,
    Opened,
    OpenRequested,
    PingReceived,
    Side,
)
from whip_core.frames import State as FrameState
from whip_core.preamble import MAX_PREAMBLE_SIZE, PreambleReader

ID = bytes(range(16))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of `size` octets; 0 is all at once."""
    size = size or len(data) or 1
    for start in range(0, len(data), size):
        yield data[start : start + size]


def preamble(data: bytes) -> None:
    """The size of the pieces, then what is said on a reverse connection."""
    if not data:
        return
    reader, said = PreambleReader(), 0
    for piece in pieces(data[1:], data[0]):
        said += len(piece)
        try:
            found = reader.feed(piece)
        except RemoteProtocolError:
            return
        if found is not None:
            assert data[1 : 1 + said].endswith(reader.rest), "the rest is not what came behind"
            assert len(reader._buffer) == 0
            return
        assert len(reader._buffer) <= MAX_PREAMBLE_SIZE + HEADER_SIZE


def frames(data: bytes) -> None:
    """A side and a state, the size of the pieces, then what the other side says."""
    if len(data) < 2:
        return
    codec = FrameCodec(Side.OPENER if data[0] & 1 else Side.ACCEPTOR)
    if codec.side is Side.OPENER and data[0] & 2:
        codec.open(80, ID)
    if data[0] & 4:
        codec.ping(b"pingpong")
    for piece in pieces(data[2:], data[1]):
        try:
            events = codec.receive(piece)
        except RemoteProtocolError:
            assert codec.state is FrameState.CLOSED
            return
        given_on = 0
        for event in events:
            match event:
                case DataReceived(octets):
                    given_on += len(octets)
                case OpenRequested() if codec.state is FrameState.OPENING and data[0] & 2:
                    codec.opened()
                case Opened() if codec.state is FrameState.OPEN and data[0] & 8:
                    codec.end()
                case PingReceived(payload) if codec.state is not FrameState.CLOSED:
                    codec.pong(payload)
        assert given_on <= len(piece)
        assert len(codec._partial) <= HEADER_SIZE + MAX_CONTROL_SIZE
        if codec.state is FrameState.CLOSED:
            return


def control(data: bytes) -> None:
    """A side, then messages, each behind an octet that says how long it is."""
    if not data:
        return
    is_broker = bool(data[0] & 1)
    decode = decode_agent_message if is_broker else decode_broker_message
    state = ControlState(BROKER_SIDE if is_broker else AGENT_SIDE)
    trips, position = RoundTrips(), 1
    while position < len(data):
        size = data[position]
        told = data[position + 1 : position + 1 + size]
        position += 1 + size
        try:
            message = decode(told)
            if message is None:
                continue
            state.receive(message)
        except RemoteProtocolError:
            return
        assert state.state is not State.REGISTERING
        assert len(repr(message)) < 20 * (len(told) + 100), "it grows"
        if type(message).__name__ == "Pong":
            trips.ping(0.0, 0)
            trips.pong(message, 0.0)  # type: ignore[arg-type]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "preamble": preamble,
    "frames": frames,
    "control": control,
}
