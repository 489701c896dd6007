"""Frames made by hand, and codecs in each of their states."""

from __future__ import annotations

from collections.abc import Callable

from whip_core.frames import FrameCodec, Role, State

ID = bytes(range(16))
NEXT_ID = bytes(range(16, 32))
OPENER, ACCEPTOR = Role.OPENER, Role.ACCEPTOR
PEER = {OPENER: ACCEPTOR, ACCEPTOR: OPENER}
OPEN_STATES = [state for state in State if state is not State.CLOSED]

Way = Callable[[Role], FrameCodec]


def frame(number: int, body: bytes = b"") -> bytes:
    return bytes([number]) + len(body).to_bytes(3, "big") + body


def parked(role: Role) -> FrameCodec:
    return FrameCodec(role)


def opening(role: Role) -> FrameCodec:
    codec = FrameCodec(role)
    codec.open(80, ID) if role is OPENER else codec.receive(frame(0x02, b"\0\x50" + ID))
    return codec


def opened(role: Role) -> FrameCodec:
    codec = opening(role)
    codec.receive(frame(0x03, ID)) if role is OPENER else codec.opened()
    return codec


def ended(by: Role) -> Way:
    def make(role: Role) -> FrameCodec:
        codec = opened(role)
        codec.end() if by is role else codec.receive(frame(0x06, ID))
        return codec

    return make


def closed(role: Role) -> FrameCodec:
    codec = opened(role)
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
