"""The frame codec: conversations as bytes and events, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_states import (
    ACCEPTOR,
    ID,
    NEXT_ID,
    OPEN_STATES,
    OPENER,
    PEER,
    WAY_TO,
    Way,
    closed,
    ended,
    frame,
    opened,
    opening,
    parked,
)
from whip_core import frames
from whip_core.errors import LocalProtocolError, RemoteProtocolError
from whip_core.frames import (
    COPIED_SIZE,
    MAX_CONTROL_SIZE,
    MAX_DATA_SIZE,
    DataReceived,
    EndReceived,
    Event,
    FailureCode,
    FrameCodec,
    Opened,
    OpenFailed,
    OpenRequested,
    PingReceived,
    PongReceived,
    ResetReceived,
    Side,
    State,
)


def data(body: bytes) -> bytes:
    return frame(0x05, body)


def joined(events: list[Event]) -> list[Event]:
    """With data that follows data put together, as a reader sees it."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, DataReceived) and result and isinstance(result[-1], DataReceived):
            event = DataReceived(bytes(result.pop().data) + bytes(event.data))
        result.append(event)
    return result


def pair() -> tuple[FrameCodec, FrameCodec]:
    return FrameCodec(OPENER), FrameCodec(ACCEPTOR)


def states(*codecs: FrameCodec) -> list[State]:
    return [codec.state for codec in codecs]


# Conversations


def test_two_streams_follow_each_other_on_one_connection() -> None:
    opener, acceptor = pair()

    said = opener.open(5051, ID)
    assert said == b"\x02\0\0\x12" + b"\x13\xbb" + ID
    assert acceptor.receive(said) == [OpenRequested(5051, ID, "")]

    said = acceptor.opened() + acceptor.data_header(5) + b"hello"
    assert said == b"\x03\0\0\x10" + ID + b"\x05\0\0\x05hello"
    assert opener.receive(said) == [Opened(), DataReceived(b"hello")]
    assert states(opener, acceptor) == [State.OPEN, State.OPEN]

    said = opener.data_header(3) + b"bye" + opener.end()
    assert said == b"\x05\0\0\x03bye\x06\0\0\x10" + ID
    assert acceptor.receive(said) == [DataReceived(b"bye"), EndReceived()]
    assert states(opener, acceptor) == [State.OPENER_ENDED, State.OPENER_ENDED]

    said = acceptor.data_header(4) + b"more" + acceptor.end()
    assert opener.receive(said) == [DataReceived(b"more"), EndReceived()]
    assert states(opener, acceptor) == [State.PARKED, State.PARKED]

    assert acceptor.receive(opener.open(80, NEXT_ID)) == [OpenRequested(80, NEXT_ID, "")]
    assert opener.receive(acceptor.opened()) == [Opened()]
    assert opener.dial_id == acceptor.dial_id == NEXT_ID


def test_the_acceptor_may_end_first() -> None:
    opener, acceptor = opened(OPENER), opened(ACCEPTOR)
    assert opener.receive(acceptor.end()) == [EndReceived()]
    assert acceptor.receive(opener.data_header(1) + b"x") == [DataReceived(b"x")]
    assert acceptor.receive(opener.end()) == [EndReceived()]
    assert states(opener, acceptor) == [State.PARKED, State.PARKED]


def test_ends_may_cross_on_the_way() -> None:
    opener, acceptor = opened(OPENER), opened(ACCEPTOR)
    from_opener, from_acceptor = opener.end(), acceptor.end()
    assert states(opener, acceptor) == [State.OPENER_ENDED, State.ACCEPTOR_ENDED]
    assert opener.receive(from_acceptor) == [EndReceived()]
    again = opener.open(80, NEXT_ID)
    assert acceptor.receive(from_opener + again) == [EndReceived(), OpenRequested(80, NEXT_ID, "")]


def test_a_failed_open_parks_the_connection_again() -> None:
    opener, acceptor = opening(OPENER), opening(ACCEPTOR)
    said = acceptor.failed(FailureCode.SERVICE_REFUSED, "nobody at 127.0.0.1:5051 \N{BULLET}")
    assert opener.receive(said) == [OpenFailed(1, "nobody at 127.0.0.1:5051 \N{BULLET}")]
    assert states(opener, acceptor) == [State.PARKED, State.PARKED]
    assert acceptor.receive(opener.open(80, NEXT_ID))


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("state", OPEN_STATES, ids=lambda state: state.words)
def test_a_reset_closes_whatever_is_open(state: State, side: Side) -> None:
    codec, peer = WAY_TO[state](side), WAY_TO[state](PEER[side])
    assert peer.receive(codec.reset("the disk is full")) == [ResetReceived("the disk is full")]
    assert states(codec, peer) == [State.CLOSED, State.CLOSED]


@pytest.mark.parametrize("state", OPEN_STATES, ids=lambda state: state.words)
def test_pings_are_answered_in_order_and_change_nothing(state: State) -> None:
    opener, acceptor = WAY_TO[state](OPENER), WAY_TO[state](ACCEPTOR)
    said = opener.ping(b"first...") + opener.ping(b"second..")
    assert acceptor.receive(said) == [PingReceived(b"first..."), PingReceived(b"second..")]
    answer = acceptor.pong(b"first...") + acceptor.pong(b"second..")
    assert opener.receive(answer) == [PongReceived(b"first..."), PongReceived(b"second..")]
    assert states(opener, acceptor) == [state, state]


def test_reasons_are_cut_where_a_frame_ends() -> None:
    opener, acceptor = opening(OPENER), opening(ACCEPTOR)
    (failed,) = opener.receive(acceptor.failed(1, "\N{BULLET}" * MAX_CONTROL_SIZE + "\udcff"))
    assert isinstance(failed, OpenFailed)
    assert set(failed.why) <= {"\N{BULLET}", "\N{REPLACEMENT CHARACTER}"}
    assert len(failed.why.encode()) <= frames.MAX_REASON_SIZE + 2


# What is refused


@pytest.mark.parametrize(
    ("way", "side", "said", "why"),
    [
        (opening, OPENER, frame(0x03, NEXT_ID), "OPENED with another dial's id"),
        (opening, OPENER, frame(0x03, ID[:-1]), "OPENED with another dial's id"),
        (opening, OPENER, frame(0x03, ID + b"x"), "OPENED with another dial's id"),
        (opening, OPENER, frame(0x04, NEXT_ID + b"\1no"), "FAILED with another dial's id"),
        (opened, OPENER, frame(0x06, NEXT_ID), "END with another dial's id"),
        (opened, ACCEPTOR, frame(0x06), "END with another dial's id"),
        (parked, ACCEPTOR, frame(0x02, b"\0\x50" + ID[:-1]), "OPEN of 17 bytes"),
        (opened, OPENER, data(b""), "DATA of 0 bytes"),
        (opened, OPENER, b"\x05" + (MAX_DATA_SIZE + 1).to_bytes(3, "big"), "DATA of 262145"),
        (opened, OPENER, b"\x06\xff\xff\xff", "END of 16777215 bytes"),
        (opened, OPENER, b"\x07\0\x08\x01", "RESET of 2049 bytes"),
        (parked, OPENER, frame(0x08, b"short"), "PING of 5 bytes"),
        (parked, OPENER, frame(0x09, b"pingpong"), "PONG without its PING"),
        (parked, ACCEPTOR, frame(0x01), "unknown frame type 0x01"),
        (parked, ACCEPTOR, frame(0x0A), "unknown frame type 0x0a"),
        (parked, ACCEPTOR, b"GET / HTTP/1.1\r\n", "unknown frame type 0x47"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_doubt_closes_the_connection(way: Way, side: Side, said: bytes, why: str) -> None:
    codec = way(side)
    with pytest.raises(RemoteProtocolError, match=why):
        codec.receive(said)
    assert codec.state is State.CLOSED
    with pytest.raises(RemoteProtocolError):
        codec.receive(frame(0x08, b"pingpong"))


def test_a_pong_out_of_order_is_refused() -> None:
    codec = parked(OPENER)
    codec.ping(b"first...")
    codec.ping(b"second..")
    with pytest.raises(RemoteProtocolError, match="PONG"):
        codec.receive(frame(0x09, b"second.."))


def test_nothing_that_came_with_a_broken_frame_is_believed() -> None:
    with pytest.raises(RemoteProtocolError):
        opened(OPENER).receive(data(b"good so far") + frame(0x06, NEXT_ID))


@pytest.mark.parametrize(
    "call",
    [
        lambda codec: codec.open(80, b"short"),
        lambda codec: codec.open(65_536, ID),
        lambda codec: codec.ping(b"short"),
        lambda codec: codec.data_header(0),
        lambda codec: codec.data_header(MAX_DATA_SIZE + 1),
    ],
)
def test_our_own_mistakes_are_told_and_change_nothing(
    call: Callable[[FrameCodec], bytes],
) -> None:
    codec = parked(OPENER)
    with pytest.raises((LocalProtocolError, OverflowError)):
        call(codec)
    assert codec.state is State.PARKED


# However it is cut into pieces

CONVERSATIONS = {
    "to the opener": (
        opening,
        OPENER,
        frame(0x03, ID) + data(b"a") + data(data(b"bc")) + frame(0x08, data(b"ping")) + data(b"d")
        + frame(0x06, ID) + frame(0x08, b"pongping"),
    ),
    "to the acceptor": (
        ended(ACCEPTOR),
        ACCEPTOR,
        data(b"last") + frame(0x06, ID) + frame(0x08, b"pingpong")
        + frame(0x02, b"\0\x50" + NEXT_ID) + frame(0x07, b"changed my mind"),
    ),
    "a refusal": (opening, OPENER, frame(0x04, ID + b"\2no such port") + frame(0x08, b"pingpong")),
}  # fmt: skip


@pytest.mark.parametrize(("way", "side", "said"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_events_are_the_same_however_the_bytes_are_split(
    way: Way, side: Side, said: bytes
) -> None:
    events = joined(way(side).receive(said))
    assert len(events) >= 2
    for size in range(1, len(said)):
        codec = way(side)
        pieces = [said[start : start + size] for start in range(0, len(said), size)]
        assert joined([event for piece in pieces for event in codec.receive(piece)]) == events
    for cut in range(1, len(said)):
        codec = way(side)
        assert joined(codec.receive(said[:cut]) + codec.receive(said[cut:])) == events


def taken(codec: FrameCodec, piece: bytes) -> list[Event]:
    """What a piece brings when the quick way is tried first."""
    only = codec.only_data(piece)
    return codec.receive(piece) if only is None else [DataReceived(only)]


@pytest.mark.parametrize(("way", "side", "said"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_quick_way_for_data_gives_the_same_events(way: Way, side: Side, said: bytes) -> None:
    events = joined(way(side).receive(said))
    for size in range(1, len(said) + 1):
        codec = way(side)
        pieces = [said[start : start + size] for start in range(0, len(said), size)]
        assert joined([event for piece in pieces for event in taken(codec, piece)]) == events
    for first in range(len(said)):
        for second in range(first, len(said)):
            codec = way(side)
            pieces = [said[:first], said[first:second], said[second:]]
            assert joined([event for piece in pieces for event in taken(codec, piece)]) == events


@pytest.mark.parametrize("size", [1, COPIED_SIZE, COPIED_SIZE + 1, MAX_DATA_SIZE])
def test_one_whole_data_frame_is_taken_the_quick_way(size: int) -> None:
    codec, body = opened(ACCEPTOR), bytes(size)
    assert codec.only_data(data(body)) == body
    assert codec.receive(frame(0x06, ID)) == [EndReceived()]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (opened, data(b"body")[:-1]),
        (opened, data(b"body") + b"\x05"),
        (opened, data(b"")),
        (opened, data(bytes(MAX_DATA_SIZE + 1))),
        (opened, frame(0x08, b"pingpong")),
        (opened, b""),
        (opening, data(b"body")),
        (ended(OPENER), data(b"body")),
        (closed, data(b"body")),
    ],
)
def test_the_quick_way_takes_nothing_else_and_leaves_it_as_it_was(way: Way, said: bytes) -> None:
    codec, other = way(ACCEPTOR), way(ACCEPTOR)
    assert codec.only_data(said) is None
    try:
        events = other.receive(said)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            codec.receive(said)
    else:
        assert codec.receive(said) == events


def test_a_large_frame_is_passed_on_as_it_comes_and_not_kept() -> None:
    codec = opened(OPENER)
    header, body = data(bytes(MAX_DATA_SIZE))[:4], bytes(MAX_DATA_SIZE)
    assert codec.receive(header) == []
    assert codec.receive(body[:1000]) == [DataReceived(body[:1000])]
    assert codec.receive(body[1000:]) == [DataReceived(body[1000:])]


@settings(deadline=None)
@given(
    state=st.sampled_from(State),
    side=st.sampled_from(Side),
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                frame, st.integers(0, 10), st.sampled_from([ID, b"\0\x50" + NEXT_ID, b"pingpong"])
            ),
            st.builds(frame, st.integers(0, 10), st.binary(max_size=3000)),
        )
    ),
)
def test_arbitrary_bytes_raise_nothing_else_and_are_not_piled_up(
    state: State, side: Side, pieces: list[bytes]
) -> None:
    codec, quick = WAY_TO[state](side), WAY_TO[state](side)
    for piece in pieces:
        try:
            events = codec.receive(piece)
        except RemoteProtocolError:
            assert codec.state is State.CLOSED
            with pytest.raises(RemoteProtocolError):
                taken(quick, piece)
        else:
            given_on = sum(len(event.data) for event in events if isinstance(event, DataReceived))
            assert given_on <= len(piece)
            assert joined(taken(quick, piece)) == joined(events)
        assert len(codec._partial) <= frames.HEADER_SIZE + MAX_CONTROL_SIZE
