"""The preamble: both forms, in any pieces, and not a byte of what follows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whip_core.errors import RemoteProtocolError
from whip_core.preamble import (
    MAX_PREAMBLE_SIZE,
    OldPreamble,
    Preamble,
    PreambleReader,
    encode,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "wire-vectors.json").read_text())
RECORDED = VECTORS["data_preamble"]["utf8"].encode()

OURS = Preamble(session_id="5e55", secret="5ec7e7", connection_id="c0")
OLD = OldPreamble("conn-id-1")
BEHIND = (
    b"",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\n",
    b'{"another":"object"}',
    b"}}}",
    b'"',
    bytes(range(256)) * 40,
)


PRINTABLE = st.text(max_size=100).filter(str.isprintable)


def read(*pieces: bytes) -> tuple[Preamble | OldPreamble, bytes]:
    """The preamble, and what came behind it; pieces that are left are behind it, too."""
    reader = PreambleReader()
    for number, piece in enumerate(pieces, 1):
        preamble = reader.feed(piece)
        if preamble is not None:
            return preamble, reader.rest + b"".join(pieces[number:])
    raise AssertionError(f"no preamble in {pieces}")


def framed(body: bytes) -> bytes:
    return b"\x01" + len(body).to_bytes(3, "big") + body


def test_the_old_form_is_what_was_recorded() -> None:
    assert encode(OLD) == RECORDED
    assert read(RECORDED) == (OLD, b"")


def test_our_form_is_a_frame_of_json() -> None:
    body = b'{"session":"5e55","secret":"5ec7e7","connection":"c0"}'
    assert encode(OURS) == framed(body)
    assert read(framed(body)) == (OURS, b"")


def test_a_connection_to_be_parked_answers_nothing() -> None:
    assert read(encode(Preamble("s", "t")))[0] == Preamble("s", "t", "")
    assert read(framed(b'{"session":"s","secret":"t"}'))[0] == Preamble("s", "t", "")


def test_a_secret_is_not_shown() -> None:
    assert "5ec7e7" not in repr(OURS)


@pytest.mark.parametrize("behind", BEHIND, ids=lambda behind: repr(behind[:20]))
@pytest.mark.parametrize("preamble", [OURS, OLD], ids=["ours", "old"])
def test_what_follows_is_given_back_exactly_however_it_is_split(
    preamble: Preamble | OldPreamble, behind: bytes
) -> None:
    said = encode(preamble) + behind
    assert read(*(said[n : n + 1] for n in range(len(said)))) == (preamble, behind)
    for cut in range(len(encode(preamble)) + min(len(behind), 10)):
        assert read(said[:cut], said[cut:]) == (preamble, behind)


@pytest.mark.parametrize(
    ("said", "connection_id"),
    [
        (rb'{"connectionID":"}"}', "}"),
        (rb'{"connectionID":"{{{"}', "{{{"),
        (rb'{"connectionID":"\""}', '"'),
        (rb'{"connectionID":"\\"}', "\\"),
        (rb'{"connectionID":"\\\"}\\"}', '\\"}\\'),
        (rb'{"connectionID":"\u007d\u0022"}', '}"'),
        (b'{"connectionID":"\xe2\x80\xa2"}', "\N{BULLET}"),
        (b'{"extra":{"deep":{"er":"}"}},"connectionID":"x"}', "x"),
        (b'{ "connectionID" :\n"x"\t}', "x"),
        (b'{"ConnectionId":"x"}', "x"),
        (b"{}", ""),
    ],
)
def test_the_old_form_ends_at_its_own_closing_brace(said: bytes, connection_id: str) -> None:
    expected = OldPreamble(connection_id), b'}"tail'
    assert read(said + b'}"tail') == expected
    assert read(*(bytes([byte]) for byte in said), b'}"tail') == expected


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "first byte is 47"),
        (b"\x16\x03\x01\x02\x00", "first byte is 16"),
        (b"\x00", "first byte is 00"),
        (b' {"connectionID":"x"}', "first byte is 20"),
        (b'[{"connectionID":"x"}]', "first byte is 5b"),
        (b"{connectionID}", "not valid JSON"),
        (b"{" * 2000 + b"}" * 2000, "not valid JSON"),
        (b'{"connectionID":7}', "not (a string|printable text)"),
        (b'{"connectionID":null}', "not (a string|printable text)"),
        (rb'{"connectionID":"\ud800"}', "not (a string|printable text)"),
        (rb'{"connectionID":"\n"}', "not (a string|printable text)"),
        (b'{"connectionID":"\xff"}', "not valid JSON"),
        (framed(b"[]"), "not a JSON object"),
        (framed(b'"text"'), "not a JSON object"),
        (framed(b""), "not valid JSON"),
        (framed(b'{"session":"s"'), "not valid JSON"),
        (framed(b'{"session":"s","secret":["t"]}'), "not (a string|printable text)"),
        (framed(rb'{"session":"s","secret":"\udcff"}'), "not (a string|printable text)"),
        (framed(b"[" * 4000), "not valid JSON"),
    ],
)
def test_anything_else_is_refused(said: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        PreambleReader().feed(said)
    reader = PreambleReader()
    with pytest.raises(RemoteProtocolError, match=why):
        for byte in said:
            assert reader.feed(bytes([byte])) is None


def test_a_size_beyond_the_bound_is_refused_before_it_is_sent() -> None:
    just = framed(b"x" * MAX_PREAMBLE_SIZE)
    assert PreambleReader().feed(just[:-1]) is None
    with pytest.raises(RemoteProtocolError, match="4097 bytes"):
        PreambleReader().feed(b"\x01" + (MAX_PREAMBLE_SIZE + 1).to_bytes(3, "big"))


def test_an_object_that_does_not_end_is_refused_at_the_bound() -> None:
    reader = PreambleReader()
    assert reader.feed(b'{"connectionID":"' + b"x" * (MAX_PREAMBLE_SIZE - 17)) is None
    with pytest.raises(RemoteProtocolError, match="over 4096 bytes"):
        reader.feed(b"x")
    with pytest.raises(RemoteProtocolError, match="over 4096 bytes"):
        PreambleReader().feed(b'{"connectionID":"' + b"x" * 100_000 + b'"}')


def test_an_old_preamble_of_exactly_the_bound_is_taken_with_what_follows() -> None:
    connection_id = "x" * (MAX_PREAMBLE_SIZE - 19)
    said = encode(OldPreamble(connection_id))
    assert len(said) == MAX_PREAMBLE_SIZE
    assert read(said + b"hello") == (OldPreamble(connection_id), b"hello")


@settings(deadline=None)
@given(
    st.one_of(
        st.builds(OldPreamble, PRINTABLE),
        st.builds(Preamble, PRINTABLE, PRINTABLE, PRINTABLE),
    ),
    st.binary(),
    st.integers(1, 50),
)
def test_whatever_is_encoded_is_read_back_in_any_pieces(
    preamble: Preamble | OldPreamble, behind: bytes, size: int
) -> None:
    said = encode(preamble) + behind
    assert read(*(said[n : n + size] for n in range(0, len(said), size))) == (preamble, behind)


@settings(deadline=None)
@given(st.sampled_from([b"", b"{", b"\x01", b"\x01\0\0"]), st.lists(st.binary(max_size=3000)))
def test_arbitrary_bytes_raise_nothing_else_and_are_not_piled_up(
    start: bytes, pieces: list[bytes]
) -> None:
    reader = PreambleReader()
    for piece in [start, *pieces]:
        try:
            if reader.feed(piece) is not None:
                break
        except RemoteProtocolError:
            break
        assert len(reader._buffer) <= MAX_PREAMBLE_SIZE + 4
