"""The preamble reader and a peer that says what it likes, in any order and any pieces."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from whip_core.errors import RemoteProtocolError
from whip_core.preamble import (
    HEADER_SIZE,
    MAX_PREAMBLE_SIZE,
    OldPreamble,
    Preamble,
    PreambleReader,
    encode,
)

TEXTS = st.text(max_size=30).filter(str.isprintable)
PREAMBLES = st.one_of(st.builds(OldPreamble, TEXTS), st.builds(Preamble, TEXTS, TEXTS, TEXTS))


class Conversation(RuleBasedStateMachine):
    """A true preamble, or whatever begins like one, and what comes behind."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = PreambleReader()
        self.heard = b""
        self.is_over = False
        self.wire = b""

    @precondition(lambda self: not self.wire)
    @rule(preamble=PREAMBLES, behind=st.binary(max_size=50))
    def introduce(self, preamble: Preamble | OldPreamble, behind: bytes) -> None:
        self.wire = encode(preamble) + behind

    @precondition(lambda self: not self.wire)
    @rule(start=st.sampled_from([b"", b"{", b'{"', b"\x01", b"\x01\0\0\x05"]), said=st.binary())
    def babble(self, start: bytes, said: bytes) -> None:
        self.wire = start + said

    @precondition(lambda self: self.wire)
    @rule(octet=st.integers(0, 255), place=st.integers(0, 200))
    def garble(self, octet: int, place: int) -> None:
        place %= len(self.wire)
        self.wire = self.wire[:place] + bytes([octet]) + self.wire[place + 1 :]

    @precondition(lambda self: not self.is_over)
    @rule(size=st.integers(100, 6000))
    def flood(self, size: int) -> None:
        self.hear(b" " * size)

    @precondition(lambda self: self.wire and not self.is_over)
    @rule(size=st.integers(1, 60))
    def deliver(self, size: int) -> None:
        piece, self.wire = self.wire[:size], self.wire[size:]
        self.hear(piece)

    def hear(self, piece: bytes) -> None:
        self.heard += piece
        try:
            found = self.reader.feed(piece)
        except RemoteProtocolError:
            self.is_over = True
            return
        if found is not None:
            self.is_over = True
            taken = self.heard.removesuffix(self.reader.rest)
            assert self.heard == taken + self.reader.rest
            # Alone it says the same, and a byte less of it says nothing.
            assert PreambleReader().feed(taken) == found
            assert PreambleReader().feed(taken[:-1]) is None

    @precondition(lambda self: self.is_over)
    @rule()
    def next_peer(self) -> None:
        self.reader, self.heard, self.is_over, self.wire = PreambleReader(), b"", False, b""

    @invariant()
    def no_more_is_kept_than_a_preamble(self) -> None:
        if not self.is_over:
            assert len(self.reader._buffer) <= MAX_PREAMBLE_SIZE + HEADER_SIZE


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestConversation = Conversation.TestCase
