"""Framed connections: dials refused, cancelled, and following each other on one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streams import (
    DIAL_ID,
    EXTRA,
    PORT,
    Accepting,
    Framed,
    Pair,
    Recorder,
    every_kind,
    pattern,
    run,
    turns,
)
from whip_core import drain, framed, frames
from whip_core.errors import (
    AgentGone,
    DialError,
    LocalProtocolError,
    PortNotExposed,
    ServiceRefused,
    StreamCut,
    StreamReset,
)
from whip_core.framed import FramedConnection
from whip_core.frames import FailureCode, FrameCodec, Role
from whip_core.stream import Stream
from whip_core.testing import MemoryTransport, memory_pair

NEXT_ID = bytes(range(16, 32))


class Parking(Framed):
    """The opener's end; `parked` counts how often it became free."""

    def __init__(self, on_idle: Callable[[FramedConnection], None] | None = None) -> None:
        super().__init__(Role.OPENER, on_idle=on_idle or self._count)
        self.parked = 0

    def _count(self, _: FramedConnection) -> None:
        self.parked += 1


@asynccontextmanager
async def connected(
    opener: Framed | None = None, acceptor: Accepting | None = None
) -> AsyncIterator[tuple[Any, Accepting]]:
    opener, acceptor = opener or Parking(), acceptor or Accepting()
    memory_pair(opener, acceptor)
    try:
        yield opener, acceptor
    finally:
        for connection in (opener, acceptor):
            connection.transport.abort()
            await connection.gone.wait()


class Bare(asyncio.Protocol):
    """A peer that a test writes byte by byte."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@asynccontextmanager
async def stream_from_a_bare_opener() -> AsyncIterator[tuple[Stream, Bare, FrameCodec]]:
    """A stream at the acceptor, and what its peer is written with: bytes of its codec."""
    acceptor, peer, codec = Accepting(), Bare(), FrameCodec(Role.OPENER)
    memory_pair(acceptor, peer)
    peer.transport.write(codec.open(PORT, DIAL_ID))
    stream = await acceptor.accepted.get()
    await turns()
    codec.receive(bytes(peer.received))
    try:
        yield stream, peer, codec
    finally:
        peer.transport.abort()
        await acceptor.gone.wait()


def opening(opener: Framed, dial_id: bytes = DIAL_ID) -> asyncio.Task[Stream]:
    loop = asyncio.get_running_loop()
    return loop.create_task(opener.open(PORT, dial_id, extra=EXTRA))


async def end_both(*streams: Stream) -> None:
    recorders = [Recorder(keep_open=False) for _ in streams]
    for stream, recorder in zip(streams, recorders, strict=True):
        stream.attach(recorder)
        stream.close()
    for recorder in recorders:
        assert await recorder.until_lost() is None


# One stream after the other


@every_kind(lambda kind: kind.framed)
async def test_a_connection_whose_stream_has_ended_carries_the_next_one_clean(pair: Pair) -> None:
    opener, acceptor = pair.carriers if pair.carriers[0].is_opener else pair.carriers[::-1]
    one, other = pair.attach_both()
    one.transport.write(b"first user's")
    one.transport.close()
    await other.until(lambda: other.ended)
    assert not opener.is_parked
    other.transport.close()
    assert (await one.until_lost(), await other.until_lost()) == (None, None)

    second_one = pair.attach(await opener.open(PORT, NEXT_ID, extra=EXTRA))
    second_other = pair.attach(await acceptor.accepted.get())
    one.transport.write(b"late")
    other.transport.pause_reading()
    other.transport.abort()
    second_one.transport.write(b"second user's")
    second_other.transport.write(b"answer")
    await second_other.until(lambda: second_other.received == b"second user's")
    await second_one.until(lambda: second_one.received == b"answer")
    assert other.received == b"first user's"
    second_one.transport.close()
    await second_other.until(lambda: second_other.ended)
    second_other.transport.close()
    assert await second_one.until_lost() is None
    assert opener.is_parked


def test_many_streams_follow_each_other_on_one_connection() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            for number in range(100):
                dial_id = number.to_bytes(16, "big")
                one = await opener.open(PORT, dial_id, extra=EXTRA)
                other = await acceptor.accepted.get()
                assert (one.dial_id, other.dial_id) == (dial_id.hex(), dial_id.hex())
                await end_both(one, other)
            assert opener.parked == 100
            assert opener.is_parked
            assert acceptor.is_parked

    run(main())


def test_a_stream_that_is_over_has_no_say_over_the_next_one() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            old = await opener.open(PORT, DIAL_ID, extra=EXTRA)
            await end_both(old, await acceptor.accepted.get())
            new = await opener.open(PORT, NEXT_ID, extra=EXTRA)
            recorder = Recorder()
            new.attach(recorder)
            limits = new.get_write_buffer_limits()

            old.write(b"x")
            old.pause_reading()
            old.set_write_buffer_limits(high=7)
            old.close()
            old.reset("now")

            assert new.get_write_buffer_limits() == limits
            other = await acceptor.accepted.get()
            other.write(b"still here")
            await recorder.until(lambda: recorder.received == b"still here")
            assert (new.bytes_sent, old.bytes_sent) == (0, 0)

    run(main())


def test_limits_that_one_stream_has_set_are_not_left_to_the_next() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            one = await opener.open(PORT, DIAL_ID, extra=EXTRA)
            before = one.get_write_buffer_limits()
            one.set_write_buffer_limits(high=1)
            await end_both(one, await acceptor.accepted.get())
            new = await opener.open(PORT, NEXT_ID, extra=EXTRA)
            assert new.get_write_buffer_limits() == before

    run(main())


def test_a_connection_is_not_parked_while_bytes_of_its_last_stream_are_on_their_way() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            one, other = Recorder(), Recorder(paused=True)
            (await opener.open(PORT, DIAL_ID, extra=EXTRA)).attach(one)
            (await acceptor.accepted.get()).attach(other)
            other.transport.write_eof()
            await one.until(lambda: one.ended)
            one.transport.write(pattern(1_000_000))
            one.transport.close()
            await turns()
            assert (opener.is_parked, opener.parked, one.lost) == (False, 0, [])
            other.transport.resume_reading()
            assert await one.until_lost() is None
            assert (opener.is_parked, opener.parked) == (True, 1)

    run(main())


# Dials that fail


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (FailureCode.SERVICE_REFUSED, ServiceRefused),
        (FailureCode.PORT_NOT_EXPOSED, PortNotExposed),
        (FailureCode.DRAINING, AgentGone),
        (200, ServiceRefused),
    ],
)
def test_a_refused_dial_says_why_and_leaves_the_connection_parked(
    code: int, error: type[DialError]
) -> None:
    async def main() -> None:
        async with connected(acceptor=Accepting(at_once=False)) as (opener, acceptor):
            task = opening(opener)
            await acceptor.asked.get()
            acceptor.refuse(code, "nothing listens on 5051 \N{BULLET} \udcff")
            with pytest.raises(error, match="nothing listens on 5051 \N{BULLET}"):
                await task
            assert (opener.is_parked, opener.parked, acceptor.is_parked) == (True, 1, True)

    run(main())


def test_a_connection_that_goes_fails_its_dial_and_ends_the_agents_attempt() -> None:
    async def main() -> None:
        async with connected(acceptor=Accepting(at_once=False)) as (opener, acceptor):
            attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            acceptor.before_answering = lambda: attempt
            task = opening(opener)
            await acceptor.asked.get()
            acceptor.transport.cut()
            with pytest.raises(AgentGone):
                await task
            await acceptor.gone.wait()
            await turns()
            assert attempt.cancelled()

    run(main())


def test_only_a_parked_connection_takes_a_dial() -> None:
    async def main() -> None:
        async with connected(acceptor=Accepting(at_once=False)) as (opener, acceptor):
            task = opening(opener)
            await acceptor.asked.get()
            with pytest.raises(LocalProtocolError):
                await opener.open(PORT, NEXT_ID, extra=EXTRA)
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            with pytest.raises(ServiceRefused):
                await task
            opener.close()
            await opener.gone.wait()
            with pytest.raises(AgentGone):
                await opener.open(PORT, NEXT_ID, extra=EXTRA)

    run(main())


def test_a_connection_freed_by_a_refusal_may_be_taken_before_the_refused_dial_has_heard() -> None:
    """The next dial runs in the same turn of the loop, ahead of the one that was refused."""

    async def main() -> None:
        second: list[asyncio.Task[Stream]] = []

        async def dial_at_once(connection: Any) -> Stream:
            return await connection.open(PORT, NEXT_ID, extra=EXTRA)

        def became_idle(connection: FramedConnection) -> None:
            if not second:
                loop = asyncio.get_running_loop()
                second.append(asyncio.Task(dial_at_once(connection), loop=loop, eager_start=True))

        async with connected(Parking(became_idle), Accepting(at_once=False)) as (opener, acceptor):
            first = opening(opener)
            await acceptor.asked.get()
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            with pytest.raises(ServiceRefused):
                await first
            await acceptor.asked.get()
            other = acceptor.accept(extra=EXTRA)
            await end_both(await second[0], other)

    run(main())


# Dials that are cancelled


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("after", range(12))
def test_a_dial_cancelled_at_any_moment_leaves_nothing(after: int, at_once: bool) -> None:
    """Either it was too late and a stream is given, or nobody holds anything."""

    async def main() -> None:
        async with connected(acceptor=Accepting(at_once=at_once)) as (opener, acceptor):
            if not at_once:
                acceptor.refuse_with = FailureCode.SERVICE_REFUSED
            task = opening(opener)
            await turns(after)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceRefused):
                await end_both(await task, await acceptor.accepted.get())
            await turns()
            if opener.lost:
                assert acceptor.lost
                while not acceptor.accepted.empty():
                    recorder = Recorder()
                    acceptor.accepted.get_nowait().attach(recorder)
                    assert isinstance(await recorder.until_lost(), StreamReset)
            else:
                assert opener.is_parked
                assert acceptor.is_parked
                await end_both(
                    *await asyncio.gather(opening(opener, NEXT_ID), acceptor.accepted.get())
                ) if at_once else None

    run(main())
