"""The codec's table of states: complete, the same for both sides, and what the codec does."""

from __future__ import annotations

import itertools

import pytest

from frame_states import ACCEPTOR, ID, NEXT_ID, OPENER, PEER, WAY_TO, frame
from whip_core.errors import LocalProtocolError, RemoteProtocolError
from whip_core.frames import TRANSITIONS, FrameCodec, FrameType, Side, State

# What each frame looks like when nothing is wrong with it.
WELL_FORMED = {
    FrameType.OPEN: b"\0\x50" + NEXT_ID,
    FrameType.OPENED: ID,
    FrameType.FAILED: ID + b"\1why",
    FrameType.DATA: b"data",
    FrameType.END: ID,
    FrameType.RESET: b"why",
    FrameType.PING: b"pingpong",
    FrameType.PONG: b"pingpong",
}


CASES = list(itertools.product(Side, State, FrameType))
every_case = pytest.mark.parametrize(
    ("side", "state", "frame_type"),
    CASES,
    ids=[f"{side.value}-{state.words}-{frame_type.name}" for side, state, frame_type in CASES],
)


def send(codec: FrameCodec, frame_type: FrameType) -> bytes:
    match frame_type:
        case FrameType.OPEN:
            return codec.open(80, NEXT_ID)
        case FrameType.FAILED:
            return codec.failed(1, "why")
        case FrameType.DATA:
            return codec.data_header(4) + b"data"
        case FrameType.RESET:
            return codec.reset("why")
        case FrameType.PING | FrameType.PONG:
            return getattr(codec, frame_type.name.lower())(b"pingpong")
        case _:
            return getattr(codec, frame_type.name.lower())()


def test_the_table_says_something_of_every_state_and_frame() -> None:
    assert set(TRANSITIONS) == set(State)
    named = {frame_type for moves in TRANSITIONS.values() for _, frame_type in moves}
    assert named == set(FrameType)
    assert TRANSITIONS[State.CLOSED] == {}


def test_the_table_is_the_same_for_both_sides_once_a_stream_is_open() -> None:
    swapped = {State.OPENER_ENDED: State.ACCEPTOR_ENDED, State.ACCEPTOR_ENDED: State.OPENER_ENDED}
    for state in (State.OPEN, State.OPENER_ENDED, State.ACCEPTOR_ENDED):
        mirrored = {
            (PEER[side], frame_type): swapped.get(after, after)
            for (side, frame_type), after in TRANSITIONS[state].items()
        }
        assert mirrored == TRANSITIONS[swapped.get(state, state)]


def test_no_frames_in_flight_can_surprise_the_other_side() -> None:
    """Every interleaving of allowed sends, up to three frames under way in each direction."""
    start = (State.PARKED, State.PARKED, (), ())
    seen, left = {start}, [start]
    while left:
        opener, acceptor, to_acceptor, to_opener = left.pop()
        nexts = []
        for (side, frame_type), after in TRANSITIONS[opener].items():
            if side is OPENER and len(to_acceptor) < 3:
                nexts.append((after, acceptor, (*to_acceptor, frame_type), to_opener))
        for (side, frame_type), after in TRANSITIONS[acceptor].items():
            if side is ACCEPTOR and len(to_opener) < 3:
                nexts.append((opener, after, to_acceptor, (*to_opener, frame_type)))
        if to_acceptor and acceptor is not State.CLOSED:
            after = TRANSITIONS[acceptor][OPENER, to_acceptor[0]]
            nexts.append((opener, after, to_acceptor[1:], to_opener))
        if to_opener and opener is not State.CLOSED:
            after = TRANSITIONS[opener][ACCEPTOR, to_opener[0]]
            nexts.append((after, acceptor, to_acceptor, to_opener[1:]))
        if not (to_acceptor or to_opener):
            assert opener is acceptor
        left += set(nexts) - seen
        seen.update(nexts)
    assert len(seen) > 1000


@every_case
def test_a_frame_is_sent_only_where_the_table_has_it(
    side: Side, state: State, frame_type: FrameType
) -> None:
    codec = WAY_TO[state](side)
    after = TRANSITIONS[state].get((side, frame_type))
    if after is None:
        with pytest.raises(LocalProtocolError, match=frame_type.name):
            send(codec, frame_type)
        assert codec.state is state
    else:
        assert send(codec, frame_type)[0] == frame_type
        assert codec.state is after


@every_case
def test_a_frame_is_taken_only_where_the_table_has_it(
    side: Side, state: State, frame_type: FrameType
) -> None:
    codec = WAY_TO[state](side)
    if frame_type is FrameType.PONG and state is not State.CLOSED:
        codec.ping(b"pingpong")
    after = TRANSITIONS[state].get((PEER[side], frame_type))
    said = frame(frame_type, WELL_FORMED[frame_type])
    if after is None:
        with pytest.raises(RemoteProtocolError, match=frame_type.name):
            codec.receive(said)
        assert codec.state is State.CLOSED
    else:
        assert len(codec.receive(said)) == 1
        assert codec.state is after
