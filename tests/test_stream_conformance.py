"""One contract for every kind of stream: asyncio's for transports, and DESIGN §4's."""

from __future__ import annotations

import asyncio

import pytest

from streams import EXTRA, Kind, Pair, Recorder, digest, every_kind, pattern, turns
from whip_core import drain
from whip_core.errors import StreamCut, StreamReset

MB = 1_000_000
MOST_HELD = 1_000_000
"""Octets that a stream to a reader that does not read may take: both ends' buffers, and the
kernel's in the tests (some 300 KB in all), and room to spare; the tests offer 20 times more."""


def framed(kind: Kind) -> bool:
    return kind.framed


def half_closing(kind: Kind) -> bool:
    return kind.half_close


def not_half_closing(kind: Kind) -> bool:
    return not kind.half_close


def telling_cuts(kind: Kind) -> bool:
    return kind.tells_cut


@pytest.fixture(autouse=True)
def short_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "DRAIN_TIMEOUT", 0.1)


def streams_of(recorder: Recorder) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    raise NotImplementedError


# Data


@every_kind(both_ways=False)
async def test_bytes_of_any_amount_arrive_in_order_both_ways_at_once(pair: Pair) -> None:
    one, other = pair.attach_both()
    for size in (1, 65_536, 3 * MB):
        sent = pattern(size)
        for recorder in (one, other):
            recorder.received.clear()
            recorder.transport.write(sent)
        for recorder in (one, other):
            await recorder.until(lambda recorder=recorder: len(recorder.received) >= len(sent))
            assert digest(recorder.received) == digest(sent)


@every_kind()
async def test_writes_of_every_type_and_of_nothing_keep_their_order(pair: Pair) -> None:
    one, other = pair.attach_both()
    reused = bytearray(b"bytearray ")
    one.transport.write(b"bytes ")
    one.transport.write(b"")
    one.transport.write(reused)
    reused[:] = b"X" * len(reused)
    one.transport.write(memoryview(b"-memoryview-")[1:-1])
    one.transport.writelines([b" several", b" lines"])
    await other.until(lambda: other.received.endswith(b"lines"))
    assert other.received == b"bytes bytearray memoryview several lines"


@every_kind()
async def test_what_comes_before_there_is_a_protocol_waits_for_it(pair: Pair) -> None:
    other = pair.attach(pair.other)
    other.transport.write(b"220 ready\r\n")
    await turns()
    one = pair.attach(pair.one)
    await one.until(lambda: one.received == b"220 ready\r\n")
    one.transport.write(b"thanks")
    await other.until(lambda: other.received == b"thanks")


@every_kind()
async def test_a_whole_stream_that_came_and_ended_waits_for_its_protocol(pair: Pair) -> None:
    other = pair.attach(pair.other)
    other.transport.write(b"all there is")
    other.transport.close()
    await turns()
    one = pair.attach(pair.one, Recorder(keep_open=False))
    assert await one.until_lost() is None
    assert (bytes(one.received), one.ended) == (b"all there is", True)
    assert await other.until_lost() is None


# Ends


@every_kind(half_closing)
async def test_one_direction_ends_and_the_other_goes_on(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write(b"question")
    one.transport.write_eof()
    await other.until(lambda: other.ended)
    assert other.received == b"question"
    assert not (one.ended or one.lost or other.lost)

    other.transport.write(pattern(MB))
    await one.until(lambda: len(one.received) == MB)
    assert not one.ended
    other.transport.write_eof()
    await one.until(lambda: one.ended)
    assert digest(one.received) == digest(pattern(MB))
    one.transport.close()
    other.transport.close()
    assert (await one.until_lost(), await other.until_lost()) == (None, None)


@every_kind(half_closing, both_ways=False)
async def test_both_directions_may_end_at_the_same_moment(pair: Pair) -> None:
    one, other = pair.attach_both()
    for recorder in (one, other):
        recorder.transport.write(b"bye")
        recorder.transport.write_eof()
    for recorder in (one, other):
        await recorder.until(lambda recorder=recorder: recorder.ended)
        recorder.transport.close()
        assert await recorder.until_lost() is None
        assert recorder.received == b"bye"


@every_kind()
async def test_the_last_bytes_before_a_close_arrive(pair: Pair) -> None:
    one = pair.attach(pair.one)
    other = pair.attach(pair.other, Recorder(keep_open=False))
    one.transport.write(pattern(3 * MB))
    one.transport.close()
    assert one.transport.is_closing()
    assert await other.until_lost() is None
    assert other.ended
    assert digest(other.received) == digest(pattern(3 * MB))
    assert await one.until_lost() is None


@every_kind(half_closing)
async def test_an_end_keeps_a_protocol_open_only_if_it_says_so(pair: Pair) -> None:
    one = pair.attach(pair.one, Recorder(keep_open=False))
    other = pair.attach(pair.other)
    other.transport.write_eof()
    await other.until(lambda: other.ended)
    assert await one.until_lost() is None


@every_kind(not_half_closing)
async def test_where_an_end_ends_both_the_transport_says_so(pair: Pair) -> None:
    one, other = pair.attach_both()
    assert not one.transport.can_write_eof()
    with pytest.raises(NotImplementedError):
        one.transport.write_eof()
    one.transport.write(b"last")
    one.transport.close()
    assert (await one.until_lost(), await other.until_lost()) == (None, None)
    assert (bytes(other.received), other.ended) == (b"last", True)


@every_kind()
async def test_a_reset_is_told_from_an_end(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write(b"half a sent")
    await other.until(lambda: other.received == b"half a sent")
    one.transport.reset("the service went away")
    assert await one.until_lost() is None
    assert isinstance(await other.until_lost(), StreamReset)
    assert not other.ended
    assert (pair.one.cause, pair.other.cause) == ("reset", "reset")


@every_kind()
async def test_an_abort_is_an_error_at_the_other_end(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.abort()
    assert await one.until_lost() is None
    assert isinstance(await other.until_lost(), ConnectionResetError)
    assert not other.ended


@every_kind(telling_cuts)
async def test_a_connection_that_goes_is_a_cut_at_both_ends(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write(b"half a sent")
    await other.until(lambda: other.received == b"half a sent")
    pair.cut()
    for recorder, stream in ((one, pair.one), (other, pair.other)):
        assert isinstance(await recorder.until_lost(), StreamCut)
        assert not recorder.ended
        assert stream.cause == "cut"


@every_kind(telling_cuts)
async def test_a_cut_after_one_direction_has_ended_is_still_a_cut(pair: Pair) -> None:
    one, other = pair.attach_both()
    if one.transport.can_write_eof():
        one.transport.write_eof()
        await other.until(lambda: other.ended)
    pair.cut()
    assert isinstance(await one.until_lost(), StreamCut)
    assert isinstance(await other.until_lost(), StreamCut)


# Pausing


@every_kind()
async def test_a_reader_that_does_not_read_bounds_what_its_writer_can_send(pair: Pair) -> None:
    one = pair.attach(pair.one)
    other = pair.attach(pair.other, Recorder(paused=True))
    piece = pattern(65_536)
    sent = 0
    while sent < 20 * MOST_HELD:
        if one.write_paused:
            await turns()
            if one.write_paused:
                break
        one.transport.write(piece)
        sent += len(piece)
        await asyncio.sleep(0)
    assert sent < MOST_HELD
    assert 0 < one.transport.get_write_buffer_size() < MOST_HELD
    assert other.pieces == 0

    other.transport.resume_reading()
    await one.until(lambda: not one.write_paused)
    await other.until(lambda: len(other.received) == sent)
    assert digest(other.received) == digest(piece * (sent // len(piece)))


@every_kind()
async def test_the_write_buffers_limits_are_asyncios(pair: Pair) -> None:
    one = pair.attach(pair.one)
    pair.attach(pair.other, Recorder(paused=True))
    one.transport.set_write_buffer_limits(high=300_000, low=100_000)
    assert one.transport.get_write_buffer_limits() == (100_000, 300_000)
    one.transport.set_write_buffer_limits(high=0)
    one.transport.write(pattern(2 * MB))
    assert one.write_paused
    assert 0 < one.transport.get_write_buffer_size() <= 2 * MB + 1000


@every_kind()
async def test_nothing_is_received_while_reading_is_paused_from_the_start(pair: Pair) -> None:
    other = pair.attach(pair.other, Recorder(paused=True))
    one = pair.attach(pair.one)
    one.transport.write(b"wait for it")
    one.transport.close()
    await turns()
    assert not other.transport.is_reading()
    assert (other.pieces, other.ended, other.lost) == (0, False, [])
    other.transport.resume_reading()
    await other.until(lambda: other.ended)
    assert other.received == b"wait for it"


class OneAtATime(Recorder):
    """Pauses in each `data_received`."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()


@every_kind()
async def test_a_pause_inside_data_received_holds_back_the_next_piece(pair: Pair) -> None:
    other = pair.attach(pair.other, OneAtATime())
    one = pair.attach(pair.one)
    for start in range(0, MB, 50_000):
        one.transport.write(pattern(MB)[start : start + 50_000])
    one.transport.close()
    pieces = 0
    while not other.ended:
        pieces += 1
        await other.until(lambda pieces=pieces: other.pieces == pieces or other.ended)
        await turns(5)
        assert other.pieces == pieces or other.ended
        other.transport.resume_reading()
    assert digest(other.received) == digest(pattern(MB))


# Closing against a sender


class Flooding(Recorder):
    """Sends for ever, as fast as it is taken."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._send()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send()

    def _send(self) -> None:
        while not (self.write_paused or self.transport.is_closing()):
            self.transport.write(bytes(65_536))


@every_kind()
async def test_a_close_against_a_sender_ends_soon_and_our_last_bytes_arrive(pair: Pair) -> None:
    one = pair.attach(pair.one)
    other = pair.attach(pair.other, Flooding())
    await one.until(lambda: one.received)
    last = pattern(500_000)
    one.transport.write(last)
    one.transport.close()
    received = len(one.received)
    assert await one.until_lost() is None
    assert len(one.received) == received
    error = await other.until_lost()
    assert digest(other.received) == digest(last)
    assert other.ended
    assert isinstance(error, StreamReset) or not pair.other.can_write_eof()


@every_kind()
async def test_a_close_ends_when_the_other_end_takes_nothing(pair: Pair) -> None:
    one = pair.attach(pair.one)
    pair.attach(pair.other, Recorder(paused=True))
    one.transport.write(pattern(5 * MB))
    one.transport.close()
    await one.until_lost()


# After the end


@every_kind(half_closing)
async def test_a_write_after_the_own_end_is_an_error(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write_eof()
    one.transport.write_eof()
    with pytest.raises(RuntimeError):
        one.transport.write(b"too late")
    await other.until(lambda: other.ended)
    assert not other.received


@every_kind()
async def test_a_closed_stream_takes_calls_and_does_nothing(pair: Pair) -> None:
    one = pair.attach(pair.one)
    other = pair.attach(pair.other, Recorder(keep_open=False))
    for act in (one.transport.close, one.transport.abort):
        act()
        one.transport.write(b"dropped")
        one.transport.pause_reading()
        one.transport.resume_reading()
        if one.transport.can_write_eof():
            one.transport.write_eof()
        assert one.transport.is_closing()
        assert not one.transport.is_reading()
    assert one.lost == []
    assert await one.until_lost() is None
    await other.until_lost()
    assert not other.received


class Closing(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.close()


class Aborting(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.abort()


@every_kind()
async def test_nothing_is_received_after_a_close_inside_data_received(pair: Pair) -> None:
    one = pair.attach(pair.one, Closing())
    other = pair.attach(pair.other, Recorder(keep_open=False))
    for _ in range(20):
        other.transport.write(bytes(1000))
    assert await one.until_lost() is None
    assert one.pieces == 1
    await other.until_lost()


@every_kind()
async def test_nothing_is_received_after_an_abort_inside_data_received(pair: Pair) -> None:
    one = pair.attach(pair.one, Aborting())
    other = pair.attach(pair.other)
    for _ in range(20):
        other.transport.write(bytes(1000))
    assert await one.until_lost() is None
    assert one.pieces == 1
    assert isinstance(await other.until_lost(), StreamReset)
