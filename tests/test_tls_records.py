"""TLS without I/O: whatever pieces the records come in, what they carry comes out whole."""

from __future__ import annotations

import asyncio
import ssl
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import client_tls, pattern, server_tls
from whip_core import tls_transport
from whip_core.tls_records import RECORD_SIZE, TLSRecords

READ_SIZE = 64 * 1024
ROOM = memoryview(bytearray(READ_SIZE + RECORD_SIZE))


def connected() -> tuple[TLSRecords, TLSRecords]:
    client = TLSRecords(client_tls(), server_side=False, server_hostname="localhost")
    server = TLSRecords(server_tls(), server_side=True, server_hostname=None)
    done = False
    while not done:
        client.handshake()
        server.feed(memoryview(client.to_send()))
        done = server.handshake()
        client.feed(memoryview(server.to_send()))
    return client, server


def reads(records: TLSRecords, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each call that asks OpenSSL for a record gave."""
    counts: list[int] = []
    read_into = records._read_into

    def spy(buffer: memoryview) -> int:
        counts.append(read_into(buffer))
        return counts[-1]

    monkeypatch.setattr(records, "_read_into", spy)
    return counts


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 1000, RECORD_SIZE, RECORD_SIZE + 1, 70_000]), max_size=8),
    cuts=st.lists(st.one_of(st.integers(1, 30), st.integers(1, READ_SIZE)), min_size=1, max_size=9),
    fed=st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_what_was_encrypted_comes_out_however_it_is_cut(
    sizes: list[int], cuts: list[int], fed: list[bool]
) -> None:
    one, other = connected()
    sent = b"".join(pattern(size) for size in sizes)
    wire = b"".join(one.encrypt(pattern(size)) for size in sizes)
    got, turn, held = b"", 0, False
    while wire:
        cut = cuts[turn % len(cuts)]
        piece, wire = memoryview(wire[:cut]), wire[cut:]
        if fed[turn % len(fed)]:
            other.feed(piece)
            held = True
        else:
            while held and (data := other.decrypt_fed(ROOM)):
                got += data
            held = False
            got += other.decrypt(piece, ROOM)
        turn += 1
    while data := other.decrypt_fed(ROOM):
        got += data
    assert got == sent
    assert not (other.over or other.holds)


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 100, 1_000, RECORD_SIZE, 20_000, READ_SIZE])
def test_a_record_is_asked_for_once_and_when_it_is_there(
    cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = connected()
    counts = reads(other, monkeypatch)
    wire = one.encrypt(pattern(3)) + one.encrypt(pattern(3 * RECORD_SIZE))
    for start in range(0, len(wire), cut):
        other.decrypt(memoryview(wire[start : start + cut]), ROOM)
    assert counts == [3] + [RECORD_SIZE] * 3


def test_what_comes_with_the_handshake_is_not_lost() -> None:
    client = TLSRecords(client_tls(), server_side=False, server_hostname="localhost")
    server = TLSRecords(server_tls(), server_side=True, server_hostname=None)
    client.handshake()
    server.feed(memoryview(client.to_send()))
    server.handshake()
    client.feed(memoryview(server.to_send()))
    assert client.handshake()
    early = client.to_send() + client.encrypt(b"early ") + client.encrypt(b"bird")
    server.feed(memoryview(early[:-1]))
    assert server.handshake()
    assert server.decrypt_fed(ROOM) == b"early "
    assert server.decrypt(memoryview(early[-1:]), ROOM) == b"bird"


def test_close_notify_is_the_end_and_what_follows_is_not_looked_at() -> None:
    one, other = connected()
    wire = one.encrypt(b"last words") + one.close() + b"\x17\x03\x03\x00\x05junk!"
    assert other.decrypt(memoryview(wire), ROOM) == b"last words"
    assert (other.over, other.error) == (True, None)


@pytest.mark.parametrize(
    "broken",
    [b"GET / HTTP/1.1\r\n", b"\x17\x03\x03\xf0\x00", b"\x17\x03\x03\0\0"],
    ids=["no TLS", "too long", "empty"],
)
def test_what_is_no_record_breaks_the_connection(broken: bytes) -> None:
    one, other = connected()
    assert other.decrypt(memoryview(one.encrypt(b"good")), ROOM) == b"good"
    assert other.decrypt(memoryview(broken.ljust(READ_SIZE, b"\0")), ROOM) == b""
    assert other.over
    assert isinstance(other.error, ssl.SSLError)


def test_a_record_that_was_changed_on_the_way_breaks_the_connection() -> None:
    one, other = connected()
    wire = bytearray(one.encrypt(b"first") + one.encrypt(b"second"))
    wire[-1] ^= 1
    assert other.decrypt(memoryview(wire), ROOM) == b"first"
    assert (other.over, isinstance(other.error, ssl.SSLError)) == (True, True)


def test_buffers_are_shared_by_what_runs_in_one_thread() -> None:
    def buffer() -> memoryview:
        transport = tls_transport.Accepting(
            asyncio.Protocol(),
            server_tls(),
            handshake_timeout=1,
            on_failure=lambda *_: None,
        )
        return transport.get_buffer(-1)

    others: list[memoryview] = []
    thread = threading.Thread(target=lambda: others.append(buffer()))
    thread.start()
    thread.join()
    assert buffer() is buffer()
    assert buffer() is not others[0]


def test_the_middle_of_a_record_is_not_taken_for_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = connected()
    counts = reads(other, monkeypatch)
    other.decrypt(memoryview(b"\x17\x03\x03\0\x50" + bytes(10)), ROOM)
    other.decrypt(memoryview(b"\x17\x03\x03\0\x05looks"), ROOM)
    assert counts == []
