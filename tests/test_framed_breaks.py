"""Framed connections that break: by a reset, by a cut, by a peer that breaks the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from framed_ends import connected
from streams import (
    DIAL_ID,
    EXTRA,
    PORT,
    Accepting,
    Recorder,
    pattern,
    run,
    turns,
)
from whip_core import drain, framed
from whip_core.errors import (
    StreamCut,
    StreamReset,
)
from whip_core.frames import FrameCodec, ResetReceived, Side
from whip_core.stream import Stream
from whip_core.testing import memory_pair

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

    def __init__(self, side: Side) -> None:
        self.codec = FrameCodec(side)
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
    acceptor, peer = Accepting(), Bare(Side.OPENER)
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
        acceptor, peer = Accepting(), Bare(Side.OPENER)
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
