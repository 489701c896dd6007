"""One contract for every kind of stream: an end, a reset and a cut are three things."""

from __future__ import annotations

import asyncio

import pytest

from streams import (
    Pair,
    Recorder,
    digest,
    ending_both_ways,
    every_kind,
    half_closing,
    open_streams,
    pattern,
    telling_cuts,
    turns,
)
from whip_core.errors import StreamCut, StreamReset

MB = 1_000_000


# Ends


@every_kind(half_closing)
async def test_one_direction_ends_and_the_other_goes_on(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write(b"question")
    one.transport.write_eof()
    await other.until(lambda: other.ended)
    assert other.received == b"question"
    other.transport.pause_reading()
    other.transport.resume_reading()
    await turns()
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
    assert (pair.one.cause, pair.other.cause) == ("end", "end")


@every_kind(half_closing, both_ways=False)
async def test_both_directions_may_end_at_the_same_moment(pair: Pair) -> None:
    one, other = pair.attach_both()
    for recorder in (one, other):
        recorder.transport.write(b"bye")
        recorder.transport.write_eof()
    await one.until(lambda: one.ended)
    await other.until(lambda: other.ended)
    for recorder in (one, other):
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


@every_kind(half_closing)
async def test_an_end_keeps_a_protocol_open_only_if_it_says_so(pair: Pair) -> None:
    one = pair.attach(pair.one, Recorder(keep_open=False))
    other = pair.attach(pair.other)
    other.transport.write_eof()
    await other.until(lambda: other.ended)
    assert await one.until_lost() is None


@every_kind(half_closing)
async def test_an_answer_may_be_written_when_the_question_has_ended(pair: Pair) -> None:
    class Answering(Recorder):
        def eof_received(self) -> bool:
            self.transport.write(b"you said " + self.received)
            self.transport.write_eof()
            return super().eof_received()

    one, _ = pair.attach(pair.one), pair.attach(pair.other, Answering())
    one.transport.write(b"hello")
    one.transport.write_eof()
    await one.until(lambda: one.ended)
    assert one.received == b"you said hello"


@every_kind(ending_both_ways)
async def test_where_an_end_ends_both_the_transport_says_so(pair: Pair) -> None:
    one, other = pair.attach_both()
    assert not one.transport.can_write_eof()
    with pytest.raises(NotImplementedError):
        one.transport.write_eof()
    one.transport.write(b"last")
    one.transport.close()
    assert (await one.until_lost(), await other.until_lost()) == (None, None)
    assert (bytes(other.received), other.ended) == (b"last", True)


# Resets and cuts


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


@every_kind(lambda kind: half_closing(kind) and telling_cuts(kind))
async def test_a_cut_after_one_direction_has_ended_is_still_a_cut(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write_eof()
    await other.until(lambda: other.ended)
    pair.cut()
    assert isinstance(await one.until_lost(), StreamCut)
    assert isinstance(await other.until_lost(), StreamCut)


@every_kind()
async def test_a_reader_ends_raises_a_reset_or_raises_a_cut(pair: Pair) -> None:
    (reader, writer), (other_reader, other_writer) = map(open_streams, (pair.one, pair.other))
    other_writer.write(b"half a sent")
    assert await reader.readexactly(11) == b"half a sent"
    pair.other.reset("the service went away")
    with pytest.raises(StreamReset):
        await reader.read()
    with pytest.raises(ConnectionResetError):
        writer.write(b"more")
        await writer.drain()
    assert await other_reader.read() == b""  # who broke it knows
    writer.close()
    other_writer.close()


@every_kind(telling_cuts)
async def test_a_reader_raises_a_cut(pair: Pair) -> None:
    reader, writer = open_streams(pair.one)
    pair.cut()
    with pytest.raises(StreamCut):
        await reader.read()
    writer.close()
    with pytest.raises(StreamCut):
        await writer.wait_closed()


@every_kind()
async def test_a_reader_that_expects_more_than_there_was_knows_it_was_an_end(pair: Pair) -> None:
    reader, writer = open_streams(pair.one)
    other = pair.attach(pair.other, Recorder(keep_open=False))
    other.transport.write(b"half")
    other.transport.close()
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(8)
    writer.close()
    await writer.wait_closed()


# Closing against a sender, or a reader that does not read


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
    one.transport.write(pattern(500_000))
    one.transport.close()
    received = len(one.received)
    assert await one.until_lost() is None
    assert len(one.received) == received
    error = await other.until_lost()
    assert digest(other.received) == digest(pattern(500_000))
    assert other.ended
    assert isinstance(error, StreamReset) or not pair.other.can_write_eof()


@every_kind()
async def test_a_close_ends_even_when_the_other_end_takes_nothing(pair: Pair) -> None:
    one = pair.attach(pair.one)
    pair.attach(pair.other, Recorder(paused=True))
    one.transport.write(pattern(3 * MB))
    one.transport.close()
    error = await one.until_lost()
    assert isinstance(error, StreamCut) or not pair.one.can_write_eof()


# Afterwards


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
    assert one.lost == []  # as in asyncio, never from inside the call
    assert await one.until_lost() is None
    await other.until_lost()
    assert not other.received


class Leaving(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.leave()


@every_kind()
async def test_nothing_is_received_after_a_close_inside_data_received(pair: Pair) -> None:
    one = pair.attach(pair.one, Leaving())
    one.leave = one.transport.close
    other = pair.attach(pair.other, Recorder(keep_open=False))
    for _ in range(20):
        other.transport.write(bytes(1000))
    assert await one.until_lost() is None
    assert one.pieces == 1
    assert await other.until_lost() is None


@every_kind()
async def test_nothing_is_received_after_an_abort_inside_data_received(pair: Pair) -> None:
    one = pair.attach(pair.one, Leaving())
    one.leave = one.transport.abort
    other = pair.attach(pair.other)
    for _ in range(20):
        other.transport.write(bytes(1000))
    assert await one.until_lost() is None
    assert one.pieces == 1
    assert isinstance(await other.until_lost(), StreamReset)
