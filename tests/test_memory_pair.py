"""The memory pair behaves as two TCP connections' transports do: each story runs on both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from streams import Recorder, digest, limit_kernel_buffers, pattern, run, turns, write_until_stuck
from whip_core.sockets import abort_with_reset
from whip_core.testing import memory_pair

Story = Callable[[Recorder, Recorder], Awaitable[None]]


async def in_memory(one: Recorder, other: Recorder) -> None:
    memory_pair(one, other)


async def over_tcp(one: Recorder, other: Recorder) -> None:
    loop = asyncio.get_running_loop()
    made = loop.create_future()

    def accept() -> Recorder:
        made.set_result(None)
        return other

    server = await loop.create_server(accept, "127.0.0.1", 0)
    await loop.create_connection(lambda: one, "127.0.0.1", server.sockets[0].getsockname()[1])
    await made
    server.close()
    await turns(3)
    limit_kernel_buffers(one.transport, other.transport)


def on_both(story: Story) -> Callable[..., None]:
    @pytest.mark.parametrize("connect", [in_memory, over_tcp])
    @pytest.mark.parametrize("flip", [False, True])
    def test(connect: Story, flip: bool) -> None:
        async def told() -> None:
            ends = Recorder(), Recorder()
            await connect(*ends)
            await story(*(ends[::-1] if flip else ends))
            for end in ends:
                if not end.lost:
                    end.transport.abort()
            for end in ends:
                await end.until_lost()
            await turns(3)
            assert [len(end.lost) for end in ends] == [1, 1]

        run(told())

    return test


@on_both
async def test_bytes_go_both_ways(one: Recorder, other: Recorder) -> None:
    one.transport.write(pattern(1_000_000))
    other.transport.writelines([b"answer ", bytearray(b"in "), memoryview(b"parts")])
    await other.until(lambda: len(other.received) == 1_000_000)
    await one.until(lambda: one.received == b"answer in parts")
    assert digest(other.received) == digest(pattern(1_000_000))


@on_both
async def test_nothing_is_received_inside_a_write(one: Recorder, other: Recorder) -> None:
    one.transport.write(b"later")
    assert not other.received
    await other.until(lambda: other.received)


@on_both
async def test_directions_end_one_by_one(one: Recorder, other: Recorder) -> None:
    assert one.transport.can_write_eof()
    one.transport.write(b"question")
    one.transport.write_eof()
    with pytest.raises(RuntimeError):
        one.transport.write(b"more")
    await other.until(lambda: other.ended)
    assert other.received == b"question"
    other.transport.write(b"answer")
    other.transport.close()
    other.transport.write(b"dropped")
    assert await other.until_lost() is None
    await one.until(lambda: one.ended)
    assert one.received == b"answer"
    assert not one.lost
    one.transport.close()
    assert await one.until_lost() is None


@on_both
async def test_a_close_sends_what_was_written(one: Recorder, other: Recorder) -> None:
    one.transport.write(pattern(1_000_000))
    one.transport.close()
    assert one.transport.is_closing()
    await other.until(lambda: other.ended)
    assert digest(other.received) == digest(pattern(1_000_000))
    assert await one.until_lost() is None


@on_both
async def test_a_protocol_that_does_not_want_to_stay_is_closed(
    one: Recorder, other: Recorder
) -> None:
    other.eof_received = lambda: None
    one.transport.write_eof()
    assert await other.until_lost() is None
    await one.until(lambda: one.ended)


@on_both
async def test_a_reader_that_pauses_holds_up_the_writer(one: Recorder, other: Recorder) -> None:
    other.transport.pause_reading()
    assert not other.transport.is_reading()
    sent = await write_until_stuck(one, pattern(65_536))
    assert sent < 1_000_000
    assert other.pieces == 0
    one.transport.write_eof()
    await turns()
    assert not other.ended
    other.transport.resume_reading()
    await other.until(lambda: other.ended)
    assert len(other.received) == sent
    assert not one.write_paused
    assert one.transport.get_write_buffer_size() == 0


@on_both
async def test_write_buffer_limits(one: Recorder, other: Recorder) -> None:
    low, high = one.transport.get_write_buffer_limits()
    assert (low, high) == (16 * 1024, 64 * 1024)
    one.transport.set_write_buffer_limits(low=1000)
    assert one.transport.get_write_buffer_limits() == (1000, 4000)
    one.transport.set_write_buffer_limits(high=0)
    with pytest.raises(ValueError, match="high"):
        one.transport.set_write_buffer_limits(high=1, low=2)
    other.transport.pause_reading()
    one.transport.write(bytes(500_000))
    assert one.write_paused
    other.transport.resume_reading()
    await one.until(lambda: not one.write_paused)


@on_both
async def test_who_closes_with_data_unread_resets_the_peer(one: Recorder, other: Recorder) -> None:
    one.transport.pause_reading()
    other.transport.write(b"unread")
    await turns()
    one.transport.close()
    assert await one.until_lost() is None
    other.transport.write(b"x")
    assert isinstance(await other.until_lost(), ConnectionError)


@on_both
async def test_who_writes_to_a_peer_that_has_gone_is_told(one: Recorder, other: Recorder) -> None:
    one.transport.close()
    await other.until(lambda: other.ended)
    while not other.lost:
        other.transport.write(b"anybody there?")
        await turns(3)
    assert isinstance(await other.until_lost(), ConnectionError)


@on_both
async def test_a_reset_reaches_the_peer(one: Recorder, other: Recorder) -> None:
    one.transport.write(b"half")
    await other.until(lambda: other.received)
    abort_with_reset(one.transport)
    assert await one.until_lost() is None
    assert isinstance(await other.until_lost(), ConnectionResetError)
    assert not other.ended


# What only memory can do


def test_a_connection_can_be_cut_or_reset_from_outside() -> None:
    async def main() -> None:
        for act, kind in (("cut", type(None)), ("reset", ConnectionResetError)):
            one, other = Recorder(), Recorder()
            transport, _ = memory_pair(one, other)
            one.transport.write(b"lost on the way")
            getattr(transport, act)()
            for end in (one, other):
                assert isinstance(await end.until_lost(), kind)
                assert not (end.received or end.ended)
                assert len(end.lost) == 1

    run(main())


def test_without_half_close_an_end_ends_both_as_over_tls() -> None:
    async def main() -> None:
        one, other = Recorder(), Recorder()
        memory_pair(one, other, half_close=False)
        assert not one.transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            one.transport.write_eof()
        one.transport.write(b"bye")
        one.transport.close()
        assert await other.until_lost() is None
        assert (bytes(other.received), other.ended) == (b"bye", True)
        assert await one.until_lost() is None

    run(main())


def test_bytes_may_come_one_by_one_and_information_is_what_was_given() -> None:
    async def main() -> None:
        one, other = Recorder(), Recorder()
        extra = {"peername": ("192.0.2.1", 7)}
        transport, _ = memory_pair(one, other, read_size=1, extra=extra)
        one.transport.write(b"slowly")
        one.transport.close()
        await other.until(lambda: other.ended)
        assert (bytes(other.received), other.pieces) == (b"slowly", 6)
        assert other.transport.get_extra_info("peername") == ("192.0.2.1", 7)
        assert "unsent=0" in repr(transport)
        other.transport.close()
        await other.until_lost()

    run(main())
