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
    Side,
    State,
)

WHICH = st.sampled_from([0, -1])
"""The first or the last of one or two."""
SIZES = st.one_of(st.integers(1, 50), st.integers(500, 5_000), st.just(MAX_DATA_SIZE))
PIECES = st.one_of(st.integers(1, 30), st.integers(100, 1_000), st.just(2 * MAX_DATA_SIZE))
OTHER = {Side.OPENER: Side.ACCEPTOR, Side.ACCEPTOR: Side.OPENER}


class Peer:
    """One end: its codec, the bytes on their way to it, and what each of its streams got."""

    def __init__(self, side: Side) -> None:
        self.codec = FrameCodec(side)
        self.wire = bytearray()
        self.stream: int | None = None
        self.sent: dict[int, bytearray] = defaultdict(bytearray)
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ends: dict[int, int] = defaultdict(int)

    def may_send(self, frame_type: FrameType) -> bool:
        return (self.codec.side, frame_type) in TRANSITIONS[self.codec.state]


class Connection(RuleBasedStateMachine):
    """Dials, data, ends and resets in any order that the table allows."""

    def __init__(self) -> None:
        super().__init__()
        self.dials = 0
        self.connect()

    def connect(self) -> None:
        self.peers = {side: Peer(side) for side in Side}
        self.opener, self.acceptor = self.peers[Side.OPENER], self.peers[Side.ACCEPTOR]

    def may_send(self, frame_type: FrameType) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.may_send(frame_type)]

    def under_way(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.wire]

    def put(self, peer: Peer, data: bytes) -> None:
        self.peers[OTHER[peer.codec.side]].wire += data

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
        peer = self.may_send(FrameType.DATA)[which]
        assert peer.stream is not None
        # Bytes that say whose they are, and from which side.
        mark = f"{peer.codec.side.value} {peer.stream};".encode()
        body = (mark * (size // len(mark) + 1))[:size]
        peer.sent[peer.stream] += body
        self.put(peer, peer.codec.data_header(size) + body)

    @precondition(lambda self: self.may_send(FrameType.END))
    @rule(which=WHICH)
    def end(self, which: int) -> None:
        peer = self.may_send(FrameType.END)[which]
        self.put(peer, peer.codec.end())

    @precondition(lambda self: self.may_send(FrameType.DATA))
    @rule(which=WHICH)
    def ping(self, which: int) -> None:
        peer = self.may_send(FrameType.DATA)[which]
        self.put(peer, peer.codec.ping(b"pingpong"))

    @precondition(lambda self: self.dials > 2 and self.may_send(FrameType.RESET))
    @rule(which=WHICH)
    def reset(self, which: int) -> None:
        peer = self.may_send(FrameType.RESET)[which]
        self.put(peer, peer.codec.reset("why not"))

    @precondition(lambda self: all(s.codec.state is State.CLOSED for s in self.peers.values()))
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
            for peer in self.under_way():
                self.receive(peer, len(peer.wire))

    def receive(self, peer: Peer, size: int) -> None:
        piece = bytes(peer.wire[:size])
        del peer.wire[:size]
        if peer.codec.state is not State.CLOSED:
            data = peer.codec.only_data(piece)
            for event in peer.codec.receive(piece) if data is None else [DataReceived(data)]:
                self.happened(peer, event)

    def happened(self, peer: Peer, event: Event) -> None:
        match event:
            case OpenRequested(_, dial_id, _):
                peer.stream = int.from_bytes(dial_id, "big")
            case DataReceived(data):
                assert peer.stream is not None
                peer.received[peer.stream] += data
            case EndReceived():
                assert peer.stream is not None
                peer.ends[peer.stream] += 1
                assert peer.ends[peer.stream] == 1
                self.check_complete(peer, peer.stream)
            case PingReceived(payload):
                if peer.may_send(FrameType.PONG):
                    self.put(peer, peer.codec.pong(payload))
            case OpenFailed() | ResetReceived():
                pass

    # What must hold

    def check_complete(self, peer: Peer, stream: int) -> None:
        sender = self.peers[OTHER[peer.codec.side]]
        assert peer.received[stream] == sender.sent[stream]

    @invariant()
    def no_byte_is_another_streams(self) -> None:
        for side, peer in self.peers.items():
            sender = self.peers[OTHER[side]]
            for stream, received in peer.received.items():
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
