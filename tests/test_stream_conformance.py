"""One contract for every kind of stream: what `asyncio.Transport` says of data and pauses.

How streams end is in `test_stream_ends`.
"""

from __future__ import annotations

import asyncio

import pytest

from streams import (
    EXTRA,
    MOST_HELD,
    Pair,
    Recorder,
    digest,
    every_kind,
    half_closing,
    open_streams,
    pattern,
    turns,
    write_until_stuck,
)

MB = 1_000_000


# Data


@every_kind(both_ways=False)
async def test_bytes_of_any_amount_arrive_in_order_both_ways_at_once(pair: Pair) -> None:
    one, other = pair.attach_both()
    for size in (1, 65_536, 3 * MB):
        one.transport.write(pattern(size))
        other.transport.write(pattern(size)[::-1])
    total = 1 + 65_536 + 3 * MB
    await one.until(lambda: len(one.received) >= total)
    await other.until(lambda: len(other.received) >= total)
    sent = pattern(1) + pattern(65_536) + pattern(3 * MB)
    answer = pattern(1) + pattern(65_536)[::-1] + pattern(3 * MB)[::-1]
    assert digest(other.received) == digest(sent)
    assert digest(one.received) == digest(answer)
    assert (pair.one.bytes_sent, pair.one.bytes_received) == (total, total)


@every_kind(both_ways=False)
async def test_many_small_writes_arrive_in_order(pair: Pair) -> None:
    one, other = pair.attach_both()
    for start in range(0, 20_000, 7):
        one.transport.write(pattern(20_000)[start : start + 7])
    await other.until(lambda: len(other.received) == 20_000)
    assert other.received == pattern(20_000)


@every_kind()
async def test_writes_of_every_type_and_of_nothing_keep_their_order(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write(b"bytes ")
    one.transport.write(b"")
    one.transport.write(bytearray(b"bytearray "))
    one.transport.write(memoryview(b"-memoryview-")[1:-1])
    one.transport.writelines([b" several", b" lines"])
    await other.until(lambda: other.received.endswith(b"lines"))
    assert other.received == b"bytes bytearray memoryview several lines"


@every_kind()
async def test_a_bytearray_may_be_changed_once_it_is_written(pair: Pair) -> None:
    one = pair.attach(pair.one)
    other = pair.attach(pair.other, Recorder(paused=True))
    data = bytearray(pattern(MB))
    one.transport.write(data)
    data[:] = bytes(MB)
    other.transport.resume_reading()
    await other.until(lambda: len(other.received) == MB)
    assert digest(other.received) == digest(pattern(MB))


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
async def test_the_protocol_can_be_exchanged(pair: Pair) -> None:
    one, other = pair.attach_both()
    one.transport.write(b"one")
    await other.until(lambda: other.received == b"one")
    successor = Recorder()
    other.transport.set_protocol(successor)
    assert other.transport.get_protocol() is successor
    one.transport.write(b"two")
    await successor.until(lambda: successor.received == b"two")
    assert other.received == b"one"
    other.transport.set_protocol(other)


@every_kind()
async def test_extra_information_is_what_the_stream_was_given(pair: Pair) -> None:
    one = pair.attach(pair.one)
    assert one.transport.get_extra_info("peername") == EXTRA["peername"]
    assert one.transport.get_extra_info("nothing") is None
    assert one.transport.get_extra_info("nothing", 7) == 7


# Pauses


@every_kind()
async def test_a_reader_that_does_not_read_bounds_what_its_writer_can_send(pair: Pair) -> None:
    one = pair.attach(pair.one)
    other = pair.attach(pair.other, Recorder(paused=True))
    sent = await write_until_stuck(one, pattern(65_536))
    assert sent < MOST_HELD
    assert 0 < one.transport.get_write_buffer_size() < MOST_HELD
    assert other.pieces == 0

    other.transport.resume_reading()
    await one.until(lambda: not one.write_paused)
    await other.until(lambda: len(other.received) == sent)
    assert digest(other.received) == digest(pattern(65_536) * (sent // 65_536))


@every_kind()
async def test_a_stream_that_has_no_protocol_yet_bounds_it_too(pair: Pair) -> None:
    one = pair.attach(pair.one)
    sent = await write_until_stuck(one, pattern(65_536))
    assert sent < MOST_HELD
    other = pair.attach(pair.other)
    await other.until(lambda: len(other.received) == sent)


@every_kind()
async def test_a_write_buffer_has_the_limits_it_was_given(pair: Pair) -> None:
    one = pair.attach(pair.one)
    pair.attach(pair.other, Recorder(paused=True))
    one.transport.set_write_buffer_limits(high=300_000, low=100_000)
    assert one.transport.get_write_buffer_limits() == (100_000, 300_000)
    one.transport.set_write_buffer_limits(high=0)
    assert not one.write_paused
    one.transport.write(pattern(2 * MB))
    assert one.write_paused
    assert 0 < one.transport.get_write_buffer_size() < 2 * MB + 10_000


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
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()


@every_kind()
async def test_a_pause_inside_data_received_holds_back_the_next_piece(pair: Pair) -> None:
    one = pair.attach(pair.one)
    other = pair.attach(pair.other, OneAtATime())
    for start in range(0, 200_000, 10_000):
        one.transport.write(pattern(200_000)[start : start + 10_000])
    one.transport.close()
    while not other.ended:
        pieces = other.pieces + 1
        other.transport.resume_reading()
        await other.until(lambda pieces=pieces: other.pieces >= pieces or other.ended)
        await turns(5)
        assert other.pieces <= pieces
    assert digest(other.received) == digest(pattern(200_000))


@every_kind()
async def test_a_writer_that_fills_the_buffer_when_connected_is_paused_once(pair: Pair) -> None:
    class Eager(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(pattern(MB))
            assert self.write_paused

    one = pair.attach(pair.one, Eager())
    other = pair.attach(pair.other)
    await one.until(lambda: not one.write_paused)
    await other.until(lambda: other.received == pattern(MB))


# asyncio's streams on top


@every_kind()
async def test_readers_and_writers_work_on_it(pair: Pair) -> None:
    (reader, writer), (other_reader, other_writer) = map(open_streams, (pair.one, pair.other))
    writer.write(b"GET /\n" + pattern(MB))
    assert await other_reader.readline() == b"GET /\n"
    body, _ = await asyncio.gather(other_reader.readexactly(MB), writer.drain())
    assert body == pattern(MB)
    other_writer.write(b"answer")
    other_writer.close()
    assert await reader.read() == b"answer"
    assert reader.at_eof()
    assert writer.get_extra_info("peername") == EXTRA["peername"]
    writer.close()
    await writer.wait_closed()
    await other_writer.wait_closed()


@every_kind(half_closing)
async def test_a_writer_can_end_its_direction_alone(pair: Pair) -> None:
    (reader, writer), (other_reader, other_writer) = map(open_streams, (pair.one, pair.other))
    assert writer.can_write_eof()
    writer.write(b"question")
    writer.write_eof()
    assert await other_reader.read() == b"question"
    other_writer.write(b"answer")
    other_writer.close()
    assert await reader.read() == b"answer"
    writer.close()
    await asyncio.gather(writer.wait_closed(), other_writer.wait_closed())


@every_kind()
async def test_a_drain_waits_for_the_reader(pair: Pair) -> None:
    _, writer = open_streams(pair.one)
    other = pair.attach(pair.other, Recorder(paused=True))
    writer.write(pattern(MB))
    drained = asyncio.get_running_loop().create_task(writer.drain())
    await turns()
    assert not drained.done()
    other.transport.resume_reading()
    await drained
    writer.close()


@every_kind()
async def test_a_drain_ends_with_the_stream(pair: Pair) -> None:
    _, writer = open_streams(pair.one)
    other = pair.attach(pair.other, Recorder(paused=True))
    writer.write(pattern(MB))
    drained = asyncio.get_running_loop().create_task(writer.drain())
    await turns()
    other.transport.abort()
    with pytest.raises(ConnectionResetError):
        await drained
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()
