"""Framed connections: dials refused, cancelled, and following each other on one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
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
    framed_kinds,
    pattern,
    run,
    turns,
)
from whip_core import drain, framed
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
from whip_core.frames import FailureCode, FrameCodec, OpenRequested, ResetReceived, Role
from whip_core.stream import Stream
from whip_core.testing import memory_pair

NEXT_ID = bytes(range(16, 32))


class Opening(Framed):
    """The opener's end; `parked` counts how often it became free again."""

    def __init__(self) -> None:
        super().__init__(Role.OPENER, on_idle=self._count)
        self.parked = 0

    def _count(self, _: FramedConnection) -> None:
        assert self.is_parked
        self.parked += 1

    def dial(self, dial_id: bytes = DIAL_ID) -> asyncio.Task[Stream]:
        return asyncio.get_running_loop().create_task(self.open(PORT, dial_id, extra=EXTRA))


@asynccontextmanager
async def connected(acceptor: Accepting | None = None) -> AsyncIterator[tuple[Opening, Accepting]]:
    opener, acceptor = Opening(), acceptor or Accepting()
    memory_pair(opener, acceptor)
    try:
        yield opener, acceptor
    finally:
        for connection in (opener, acceptor):
            connection.transport.abort()
            await connection.gone.wait()


async def end_both(*streams: Stream) -> None:
    recorders = [Recorder(keep_open=False) for _ in streams]
    for stream, recorder in zip(streams, recorders, strict=True):
        stream.attach(recorder)
    for stream in streams:
        stream.close()
    for recorder in recorders:
        assert await recorder.until_lost() is None


# One stream after the other


@every_kind(framed_kinds)
async def test_a_connection_whose_stream_has_ended_carries_the_next_one_clean(pair: Pair) -> None:
    opener, acceptor = pair.carriers
    one, other = pair.attach_both()
    one.transport.write(b"the first user's")
    one.transport.close()
    await other.until(lambda: other.ended)
    assert not opener.is_parked
    other.transport.close()
    assert (await one.until_lost(), await other.until_lost()) == (None, None)
    assert opener.is_parked

    second_one = pair.attach(await opener.open(PORT, NEXT_ID, extra=EXTRA))
    second_other = pair.attach(await acceptor.accepted.get())
    one.transport.write(b"late")
    other.transport.pause_reading()
    other.transport.abort()
    second_one.transport.write(b"the second user's")
    second_other.transport.write(b"the answer")
    await second_other.until(lambda: second_other.received == b"the second user's")
    await second_one.until(lambda: second_one.received == b"the answer")
    assert other.received == b"the first user's"
    assert not one.received


def test_many_streams_follow_each_other_on_one_connection() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            for number in range(100):
                dial_id = number.to_bytes(16, "big")
                one = await opener.open(PORT, dial_id, extra=EXTRA)
                other = await acceptor.accepted.get()
                assert (one.dial_id, other.dial_id) == (dial_id.hex(), dial_id.hex())
                await end_both(one, other)
            assert (opener.parked, opener.is_parked, acceptor.is_parked) == (100, True, True)

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
            (await acceptor.accepted.get()).write(b"still here")
            await recorder.until(lambda: recorder.received == b"still here")
            assert (old.bytes_sent, new.bytes_sent) == (0, 0)

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
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            dial = opener.dial()
            await acceptor.asked.get()
            acceptor.refuse(code, "nothing listens on /run/\udcff")
            with pytest.raises(error, match=r"nothing listens on /run/"):
                await dial
            assert (opener.is_parked, opener.parked, acceptor.is_parked) == (True, 1, True)

    run(main())


def test_a_connection_that_goes_fails_its_dial_and_ends_the_agents_attempt() -> None:
    class Trying(Accepting):
        async def answer(self, request: OpenRequested) -> None:
            self.asked.put_nowait(request)
            self.attempt = asyncio.get_running_loop().create_future()
            await self.attempt

    async def main() -> None:
        acceptor = Trying()
        async with connected(acceptor) as (opener, _):
            dial = opener.dial()
            await acceptor.asked.get()
            opener.transport.abort()
            with pytest.raises(AgentGone):
                await dial
            await acceptor.gone.wait()
            await turns()
            assert acceptor.attempt.cancelled()

    run(main())


def test_only_a_parked_connection_takes_a_dial() -> None:
    async def main() -> None:
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            dial = opener.dial()
            await acceptor.asked.get()
            with pytest.raises(LocalProtocolError):
                await opener.open(PORT, NEXT_ID, extra=EXTRA)
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            with pytest.raises(ServiceRefused):
                await dial
            opener.close()
            await opener.gone.wait()
            with pytest.raises(AgentGone):
                await opener.open(PORT, NEXT_ID, extra=EXTRA)

    run(main())


def test_the_next_dial_may_take_the_connection_before_the_refused_one_has_heard() -> None:
    async def main() -> None:
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            first = opener.dial()
            await acceptor.asked.get()

            async def dial_next() -> Stream:
                await asyncio.sleep(0)  # the turn in which the refusal arrives
                assert opener.is_parked
                assert not first.done()
                return await opener.open(PORT, NEXT_ID, extra=EXTRA)

            second = asyncio.get_running_loop().create_task(dial_next())
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            with pytest.raises(ServiceRefused):
                await first
            await acceptor.asked.get()
            other = acceptor.accept(extra=EXTRA)
            await end_both(await second, other)

    run(main())


# Dials that are cancelled


@pytest.mark.parametrize("answer", ["accepted", "refused", "nothing"])
@pytest.mark.parametrize("after", range(10))
def test_a_dial_cancelled_at_any_moment_leaves_nothing(after: int, answer: str) -> None:
    class Answering(Accepting):
        async def answer(self, request: OpenRequested) -> None:
            if answer == "accepted":
                self.accept(extra=EXTRA).attach(agents)
            elif answer == "refused":
                self.refuse(FailureCode.SERVICE_REFUSED, "no")
            else:
                await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with connected(Answering()) as (opener, acceptor):
            dial = opener.dial()
            await turns(after)
            dial.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceRefused):
                await end_both(await dial)  # it was too late
            await turns()
            assert opener.lost == acceptor.lost
            assert opener.is_parked == acceptor.is_parked == (not opener.lost)
            assert len(agents.lost) == agents.made

    agents = Recorder(keep_open=False)
    run(main())


def test_a_refused_dial_that_is_cancelled_leaves_the_connection_to_the_next() -> None:
    async def main() -> None:
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            first = opener.dial()
            await acceptor.asked.get()
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            while not opener.parked:
                await asyncio.sleep(0)
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceRefused):
                await first
            assert opener.is_parked

    run(main())


# Breaking off


def test_a_writer_that_aborts_when_it_is_paused_does_not_break_into_a_frame() -> None:
    class Impatient(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.abort()

    async def main() -> None:
        async with connected() as (opener, acceptor):
            one, other = Impatient(), Recorder()
            (await opener.open(PORT, DIAL_ID, extra=EXTRA)).attach(one)
            (await acceptor.accepted.get()).attach(other)
            one.transport.set_write_buffer_limits(high=0)
            one.transport.write(pattern(600_000))
            assert await one.until_lost() is None
            assert isinstance(await other.until_lost(), StreamReset)
            assert other.received == pattern(600_000)

    run(main())


# A peer that breaks its stream, or the protocol


class Bare(asyncio.Protocol):
    """A peer that the test plays with a codec of its own."""

    def __init__(self, role: Role) -> None:
        self.codec = FrameCodec(role)
        self.events: list[Any] = []
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.events += self.codec.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


@asynccontextmanager
async def stream_from_bare_peer() -> AsyncIterator[tuple[Stream, Bare, Accepting]]:
    acceptor, peer = Accepting(), Bare(Role.OPENER)
    memory_pair(acceptor, peer)
    peer.transport.write(peer.codec.open(PORT, DIAL_ID))
    stream = await acceptor.accepted.get()
    await turns()
    try:
        yield stream, peer, acceptor
    finally:
        peer.transport.abort()
        await acceptor.gone.wait()


class Echo(Recorder):
    """Writes, ends or breaks its own direction from inside what it is told."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self._act = act

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._act == "write":
            self.transport.write(data)
        else:
            getattr(self.transport, self._act)()


@pytest.mark.parametrize("act", ["write", "write_eof", "close", "abort", "pause_reading"])
def test_what_is_done_on_the_last_bytes_before_a_reset_that_came_with_them_is_no_error(
    act: str,
) -> None:
    async def main() -> None:
        async with stream_from_bare_peer() as (stream, peer, acceptor):
            codec, echo = peer.codec, Echo(act)
            stream.attach(echo)
            data = codec.data_header(4) + b"data"
            peer.transport.write(data + codec.ping(bytes(8)) + codec.reset("gone"))
            error = await echo.until_lost()
            assert echo.received == b"data"
            assert isinstance(error, StreamReset) or act in ("close", "abort")
            await acceptor.gone.wait()

    run(main())


def test_a_pause_keeps_what_came_before_a_reset_and_its_reason() -> None:
    async def main() -> None:
        async with stream_from_bare_peer() as (stream, peer, _):
            codec, recorder = peer.codec, Recorder(paused=True)
            stream.attach(recorder)
            peer.transport.write(codec.data_header(4) + b"data" + codec.reset("disk full"))
            recorder.transport.resume_reading()
            error = await recorder.until_lost()
            assert recorder.received == b"data"
            assert isinstance(error, StreamReset)
            assert "disk full" in str(error)

    run(main())


def test_a_peer_that_breaks_the_protocol_loses_the_connection_and_cuts_the_stream() -> None:
    async def main() -> None:
        async with stream_from_bare_peer() as (stream, peer, acceptor):
            recorder = Recorder()
            stream.attach(recorder)
            peer.transport.write(b"\xffgarbage")
            assert isinstance(await recorder.until_lost(), StreamCut)
            await peer.gone.wait()
            assert acceptor.lost

    run(main())


def test_a_peer_that_pings_and_does_not_read_the_answers_is_dropped() -> None:
    async def main() -> None:
        acceptor, peer = Accepting(), Bare(Role.OPENER)
        memory_pair(acceptor, peer)
        peer.transport.pause_reading()
        most = 0
        while not acceptor.lost:
            peer.transport.write(b"".join(peer.codec.ping(bytes(8)) for _ in range(1000)))
            await turns(2)
            most = max(most, acceptor.transport.get_write_buffer_size())
            assert most < 200_000
        await acceptor.gone.wait()

    run(main())


def test_an_aborted_connection_does_not_wait_for_ever_for_a_peer_that_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framed, "LINGER_TIMEOUT", 0.05)

    async def main() -> None:
        async with stream_from_bare_peer() as (stream, peer, acceptor):
            peer.transport.pause_reading()
            stream.attach(Recorder())
            stream.abort()
            assert not acceptor.is_parked
            await acceptor.gone.wait()
            assert acceptor.lost

    run(main())


def test_a_stream_closed_against_a_sender_breaks_off_after_a_bounded_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drain, "DRAIN_TIMEOUT", 60)

    async def main() -> None:
        async with stream_from_bare_peer() as (stream, peer, _):
            codec, recorder = peer.codec, Recorder()
            stream.attach(recorder)
            stream.close()
            sent = 0
            while not recorder.lost:
                peer.transport.write(codec.data_header(10_000) + bytes(10_000))
                sent += 10_000
                await turns(3)
            assert drain.DRAIN_BYTES < sent < drain.DRAIN_BYTES + 50_000
            assert recorder.lost == [None]
            await turns()
            assert isinstance(peer.events[-1], ResetReceived)

    run(main())


def test_a_connection_lost_before_a_closed_streams_bytes_were_out_is_an_error() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            recorder = Recorder()
            (await opener.open(PORT, DIAL_ID, extra=EXTRA)).attach(recorder)
            (await acceptor.accepted.get()).attach(Recorder(paused=True))
            recorder.transport.write(bytes(500_000))
            recorder.transport.close()
            opener.transport.reset()
            assert isinstance(await recorder.until_lost(), StreamCut)

    run(main())
