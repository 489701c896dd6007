"""Two codecs joined by wires that deliver bytes as they like: the streams never mix."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from whip_core.frames import (
    MAX_DATA_SIZE,
    TRANSITIONS,
    DataReceived,
    EndReceived,
    Event,
    FrameCodec,
    FrameType,
    OpenFailed,
    OpenRequested,
    PingReceived,
    ResetReceived,
    Role,
    State,
)

WHICH = st.sampled_from([0, -1])
"""The first or the last of one or two."""
SIZES = st.one_of(st.integers(1, 50), st.integers(500, 5_000), st.just(MAX_DATA_SIZE))
PIECES = st.one_of(st.integers(1, 30), st.integers(100, 1_000), st.just(2 * MAX_DATA_SIZE))
OTHER = {Role.OPENER: Role.ACCEPTOR, Role.ACCEPTOR: Role.OPENER}


class Side:
    """One end: its codec, the bytes on their way to it, and what each of its streams got."""

    def __init__(self, role: Role) -> None:
        self.codec = FrameCodec(role)
        self.wire = bytearray()
        self.stream: int | None = None
        self.sent: dict[int, bytearray] = defaultdict(bytearray)
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ends: dict[int, int] = defaultdict(int)

    def may_send(self, frame_type: FrameType) -> bool:
        return (self.codec.role, frame_type) in TRANSITIONS[self.codec.state]


class Connection(RuleBasedStateMachine):
    """Dials, data, ends and resets in any order that the table allows."""

    def __init__(self) -> None:
        super().__init__()
        self.dials = 0
        self.connect()

    def connect(self) -> None:
        self.sides = {role: Side(role) for role in Role}
        self.opener, self.acceptor = self.sides[Role.OPENER], self.sides[Role.ACCEPTOR]

    def may_send(self, frame_type: FrameType) -> list[Side]:
        return [side for side in self.sides.values() if side.may_send(frame_type)]

    def under_way(self) -> list[Side]:
        return [side for side in self.sides.values() if side.wire]

    def put(self, side: Side, data: bytes) -> None:
        self.sides[OTHER[side.codec.role]].wire += data

    # What the two sides do

    @precondition(lambda self: self.opener.may_send(FrameType.OPEN))
    @rule(port=st.integers(1, 65_535))
    def dial(self, port: int) -> None:
        self.dials += 1
        self.opener.stream = self.dials
        self.put(self.opener, self.opener.codec.open(port, self.dials.to_bytes(16, "big")))

    @precondition(lambda self: self.acceptor.may_send(FrameType.OPENED))
    @rule(accepts=st.sampled_from([True, True, True, False]))
    def answer(self, accepts: bool) -> None:
        codec = self.acceptor.codec
        self.put(self.acceptor, codec.opened() if accepts else codec.failed(1, "no"))

    @precondition(lambda self: self.may_send(FrameType.DATA))
    @rule(which=WHICH, size=SIZES)
    def send(self, which: int, size: int) -> None:
        side = self.may_send(FrameType.DATA)[which]
        assert side.stream is not None
        # Bytes that say whose they are, and from which side.
        mark = f"{side.codec.role.value} {side.stream};".encode()
        body = (mark * (size // len(mark) + 1))[:size]
        side.sent[side.stream] += body
        self.put(side, side.codec.data_header(size) + body)

    @precondition(lambda self: self.may_send(FrameType.END))
    @rule(which=WHICH)
    def end(self, which: int) -> None:
        side = self.may_send(FrameType.END)[which]
        self.put(side, side.codec.end())

    @precondition(lambda self: self.may_send(FrameType.DATA))
    @rule(which=WHICH)
    def ping(self, which: int) -> None:
        side = self.may_send(FrameType.DATA)[which]
        self.put(side, side.codec.ping(b"pingpong"))

    @precondition(lambda self: self.dials > 2 and self.may_send(FrameType.RESET))
    @rule(which=WHICH)
    def reset(self, which: int) -> None:
        side = self.may_send(FrameType.RESET)[which]
        self.put(side, side.codec.reset("why not"))

    @precondition(lambda self: all(s.codec.state is State.CLOSED for s in self.sides.values()))
    @rule()
    def connect_again(self) -> None:
        self.connect()

    # What the wires do

    @precondition(lambda self: self.under_way())
    @rule(which=WHICH, size=PIECES)
    def deliver(self, which: int, size: int) -> None:
        self.receive(self.under_way()[which], size)

    @precondition(lambda self: self.under_way())
    @rule()
    def deliver_all(self) -> None:
        while self.under_way():
            for side in self.under_way():
                self.receive(side, len(side.wire))

    def receive(self, side: Side, size: int) -> None:
        piece = bytes(side.wire[:size])
        del side.wire[:size]
        if side.codec.state is not State.CLOSED:
            data = side.codec.only_data(piece)
            for event in side.codec.receive(piece) if data is None else [DataReceived(data)]:
                self.happened(side, event)

    def happened(self, side: Side, event: Event) -> None:
        match event:
            case OpenRequested(_, dial_id, _):
                side.stream = int.from_bytes(dial_id, "big")
            case DataReceived(data):
                assert side.stream is not None
                side.received[side.stream] += data
            case EndReceived():
                assert side.stream is not None
                side.ends[side.stream] += 1
                assert side.ends[side.stream] == 1
                self.check_complete(side, side.stream)
            case PingReceived(payload):
                if side.may_send(FrameType.PONG):
                    self.put(side, side.codec.pong(payload))
            case OpenFailed() | ResetReceived():
                pass

    # What must hold

    def check_complete(self, side: Side, stream: int) -> None:
        sender = self.sides[OTHER[side.codec.role]]
        assert side.received[stream] == sender.sent[stream]

    @invariant()
    def no_byte_is_another_streams(self) -> None:
        for role, side in self.sides.items():
            sender = self.sides[OTHER[role]]
            for stream, received in side.received.items():
                assert sender.sent[stream].startswith(received)

    @invariant()
    def both_agree_when_nothing_is_under_way(self) -> None:
        if not (self.opener.wire or self.acceptor.wire):
            assert self.opener.codec.state is self.acceptor.codec.state

    def teardown(self) -> None:
        self.deliver_all()
        self.both_agree_when_nothing_is_under_way()


Connection.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestConnection = Connection.TestCase
