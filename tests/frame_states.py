"""Frames made by hand, and codecs in each of their states."""

from __future__ import annotations

from collections.abc import Callable

from whip_core.frames import FrameCodec, Side, State

ID = bytes(range(16))
NEXT_ID = bytes(range(16, 32))
OPENER, ACCEPTOR = Side.OPENER, Side.ACCEPTOR
PEER = {OPENER: ACCEPTOR, ACCEPTOR: OPENER}
OPEN_STATES = [state for state in State if state is not State.CLOSED]

Way = Callable[[Side], FrameCodec]


def frame(number: int, body: bytes = b"") -> bytes:
    return bytes([number]) + len(body).to_bytes(3, "big") + body


def parked(side: Side) -> FrameCodec:
    return FrameCodec(side)


def opening(side: Side) -> FrameCodec:
    codec = FrameCodec(side)
    codec.open(80, ID) if side is OPENER else codec.receive(frame(0x02, b"\0\x50" + ID))
    return codec


def opened(side: Side) -> FrameCodec:
    codec = opening(side)
    codec.receive(frame(0x03, ID)) if side is OPENER else codec.opened()
    return codec


def ended(by: Side) -> Way:
    def make(side: Side) -> FrameCodec:
        codec = opened(side)
        codec.end() if by is side else codec.receive(frame(0x06, ID))
        return codec

    return make


def closed(side: Side) -> FrameCodec:
    codec = opened(side)
    codec.reset("")
    return codec


WAY_TO: dict[State, Way] = {
    State.PARKED: parked,
    State.OPENING: opening,
    State.OPEN: opened,
    State.OPENER_ENDED: ended(OPENER),
    State.ACCEPTOR_ENDED: ended(ACCEPTOR),
    State.CLOSED: closed,
}
