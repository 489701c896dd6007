"""Both ends of a stream of every kind, and a protocol that keeps what happens to it."""

from __future__ import annotations

import asyncio
import atexit
import functools
import hashlib
import importlib.util
import itertools
import shutil
import socket
import ssl
import tempfile
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from whip_core import drain, tls_transport
from whip_core.framed import FramedConnection
from whip_core.frames import OpenRequested, Side
from whip_core.raw import RawConnection
from whip_core.relay import splice
from whip_core.stream import Stream
from whip_core.testing import Authority, MemoryTransport, memory_pair
from whip_core.tls import client_context, server_context

T = TypeVar("T")
Loop = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, Loop] = {"asyncio": asyncio.new_event_loop}
if importlib.util.find_spec("uvloop"):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop

PATIENCE = 20.0
"""Seconds after which a test has failed that waits for something: far more than any needs."""
KERNEL_BUFFER = 32 * 1024
"""Octets of a socket's buffers: small, so that a test sees what *we* hold."""
MOST_HELD = 1_000_000
"""Octets that a stream to a reader that does not read may take: both ends' buffers, and the
kernel's in the tests (some 300 KB in all), and room to spare. Tests offer 20 times more."""
SHORT_DRAIN = 0.1
"""Seconds that a closed stream waits for the other end, in tests of every kind."""
DIAL_ID = bytes(range(16))
PORT = 80
EXTRA = {"peername": ("192.0.2.1", 1234)}


def run(main: Coroutine[Any, Any, T], loop: Loop = asyncio.new_event_loop) -> T:
    """Run a test's coroutine: it ends in time, and leaves neither a task nor an error behind."""
    errors: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with asyncio.timeout(PATIENCE):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"
        return result

    with asyncio.Runner(loop_factory=loop) as runner:
        result = runner.run(watched())
    assert not errors, f"the loop was told of {errors}"
    return result


async def turns(count: int = 50) -> None:
    """Let the loop go round: on one machine, what is under way then has arrived."""
    for _ in range(count):
        await asyncio.sleep(0)


@functools.cache
def pattern(size: int) -> bytes:
    """Bytes in which nothing can be missing, doubled or out of order unseen."""
    return array("I", range(size // 4 + 1)).tobytes()[:size]


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


class Recorder(asyncio.Protocol):
    """Keeps what happens; `until` waits for it. Fails on what no transport may do."""

    def __init__(self, *, keep_open: bool = True, paused: bool = False) -> None:
        self.made = 0
        self.received = bytearray()
        self.pieces = 0
        self.ended = False
        self.lost: list[Exception | None] = []
        self.write_paused = False
        self._keep_open = keep_open
        self._start_paused = paused
        self._happened = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.made += 1
        if self._start_paused:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        assert not (self.ended or self.lost)
        self.received += data
        self.pieces += 1
        self._happened.set()

    def eof_received(self) -> bool:
        assert not (self.ended or self.lost)
        self.ended = True
        self._happened.set()
        return self._keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)
        self._happened.set()

    def pause_writing(self) -> None:
        assert not self.write_paused
        self.write_paused = True

    def resume_writing(self) -> None:
        assert self.write_paused
        self.write_paused = False
        self._happened.set()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._happened.clear()
            await self._happened.wait()

    async def until_lost(self) -> Exception | None:
        """The argument of `connection_lost`, once it has come."""
        await self.until(lambda: self.lost)
        return self.lost[0]


async def write_until_stuck(one: Recorder, piece: bytes) -> int:
    """Write as long as the transport takes more; how much that was."""
    sent = 0
    while sent < 20 * MOST_HELD:
        if one.write_paused:
            await turns()
            if one.write_paused:
                break
        one.transport.write(piece)
        sent += len(piece)
        await asyncio.sleep(0)
    return sent


def open_streams(stream: Stream) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """What `asyncio.open_connection` gives, on top of a stream."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    stream.attach(protocol)
    return reader, asyncio.StreamWriter(stream, protocol, reader, loop)


class _Watched(asyncio.Protocol):
    """Says when it is connected and when it is gone."""

    transport: asyncio.Transport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.made = asyncio.Event()
        self.gone = asyncio.Event()
        super().__init__(*args, **kwargs)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.made.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


class Framed(_Watched, FramedConnection):
    pass


class Raw(_Watched, RawConnection):
    pass


class Accepting(Framed):
    """The acceptor's end: answers each OPEN, or leaves that to the test."""

    def __init__(self, *, answers: bool = True) -> None:
        super().__init__(Side.ACCEPTOR, on_open=self._opened)
        self.asked: asyncio.Queue[OpenRequested] = asyncio.Queue()
        self.accepted: asyncio.Queue[Stream] = asyncio.Queue()
        self._answers = answers

    def _opened(self, _: FramedConnection, request: OpenRequested) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self.answer(request))

    async def answer(self, request: OpenRequested) -> None:
        self.asked.put_nowait(request)
        if self._answers:
            self.accepted.put_nowait(self.accept(extra=EXTRA))


@dataclass
class Pair:
    """Two streams that are one: what is written to `one` arrives at `other`."""

    one: Stream
    other: Stream
    carriers: tuple[_Watched, _Watched]
    recorders: list[Recorder] = field(default_factory=list)

    def attach(self, stream: Stream, recorder: Recorder | None = None) -> Recorder:
        """Every recorder has been told, once, that its stream is lost when the test ends."""
        recorder = recorder or Recorder()
        self.recorders.append(recorder)
        stream.attach(recorder)
        return recorder

    def attach_both(self) -> tuple[Recorder, Recorder]:
        return self.attach(self.one), self.attach(self.other)

    def flipped(self) -> Pair:
        return Pair(self.other, self.one, self.carriers, self.recorders)

    def cut(self) -> None:
        """Lose the connection under the streams, as a process that is killed does."""
        transport = self.carriers[1].transport
        transport.cut() if isinstance(transport, MemoryTransport) else transport.abort()


# Connecting two protocols: the first is the broker's, which listens, the second the agent's.

Connect = Callable[[_Watched, _Watched], Awaitable[None]]


async def _in_memory(one: _Watched, other: _Watched) -> None:
    memory_pair(one, other)


async def _over_tcp(one: _Watched, other: _Watched) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: one, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await loop.create_connection(lambda: other, "127.0.0.1", port)
    await one.made.wait()
    server.close()
    limit_kernel_buffers(one.transport, other.transport)


async def _over_mtls(one: _Watched, other: _Watched) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: tls_transport.Accepting(
            one, server_tls(), handshake_timeout=PATIENCE, on_failure=lambda *_: None
        ),
        "127.0.0.1",
        0,
    )
    port = server.sockets[0].getsockname()[1]
    await tls_transport.connect(other, "127.0.0.1", port, client_tls(), handshake_timeout=PATIENCE)
    await one.made.wait()
    server.close()
    limit_kernel_buffers(one.transport, other.transport)


async def _over_a_relay(one: _Watched, other: _Watched) -> None:
    """As between two brokers, of which one relays for the other."""
    loop = asyncio.get_running_loop()
    beyond = FramedConnection(Side.OPENER)
    inner, inner_other = await _tcp(loop, beyond, other)

    def carry(connection: FramedConnection, request: OpenRequested) -> asyncio.Task[None]:
        async def splice_both() -> None:
            stream = await beyond.open(request.port, request.dial_id, extra={})
            splice(stream, connection)

        return loop.create_task(splice_both())

    def gone(_: FramedConnection) -> None:
        if beyond.is_parked:  # else the relay passes it on
            beyond.close()

    near = FramedConnection(Side.ACCEPTOR, on_open=carry, on_lost=gone)
    outer_one, outer = await _tcp(loop, one, near)
    limit_kernel_buffers(inner, inner_other, outer_one, outer)


async def _tcp(
    loop: asyncio.AbstractEventLoop, one: asyncio.Protocol, other: asyncio.Protocol
) -> tuple[asyncio.BaseTransport, asyncio.BaseTransport]:
    accepted: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.set_protocol(other)
            other.connection_made(transport)
            accepted.set_result(transport)

    server = await loop.create_server(Accepted, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(
        lambda: one, "127.0.0.1", server.sockets[0].getsockname()[1]
    )
    server.close()
    return transport, await accepted


def limit_kernel_buffers(*transports: asyncio.BaseTransport) -> None:
    for transport in transports:
        sock = transport.get_extra_info("socket")
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER)


@functools.cache
def authority() -> Authority:
    folder = tempfile.mkdtemp(prefix="whip-test-ca-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Authority(folder)


@functools.cache
def server_tls() -> ssl.SSLContext:
    return server_context(authority().server_files())


@functools.cache
def client_tls() -> ssl.SSLContext:
    return client_context(authority().client_files("*.testdom"))


@dataclass(frozen=True)
class Kind:
    name: str
    connect: Connect
    framed: bool
    half_close: bool = True
    tells_cut: bool = True
    """Whether a connection that is lost can be told from one that has ended."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Pair]:
        carriers: tuple[_Watched, _Watched]
        if self.framed:
            opener, acceptor = carriers = Framed(Side.OPENER), Accepting()
            await self.connect(opener, acceptor)
            one = await opener.open(PORT, DIAL_ID, extra=EXTRA)
            other = await acceptor.accepted.get()
        else:
            carriers = Raw("dial", extra=EXTRA), Raw("dial", extra=EXTRA)
            await self.connect(*carriers)
            one, other = carriers[0].stream, carriers[1].stream
        pair = Pair(one, other, carriers)
        try:
            yield pair
        finally:
            for carrier in carriers:
                if not carrier.gone.is_set():  # asyncio's transports may raise after that
                    carrier.transport.abort()
                await carrier.gone.wait()
        for recorder in pair.recorders:
            await recorder.until_lost()
        await turns(3)
        assert [len(recorder.lost) for recorder in pair.recorders] == [1] * len(pair.recorders)


FRAMED_IN_MEMORY = Kind("framed-memory", _in_memory, framed=True)
KINDS = (
    FRAMED_IN_MEMORY,
    Kind("framed-tcp", _over_tcp, framed=True),
    Kind("framed-mtls", _over_mtls, framed=True),
    Kind("framed-relayed", _over_a_relay, framed=True, tells_cut=False),
    Kind("raw-tcp", _over_tcp, framed=False, tells_cut=False),
    Kind("raw-mtls", _over_mtls, framed=False, half_close=False),
)


def framed_kinds(kind: Kind) -> bool:
    return kind.framed


def half_closing(kind: Kind) -> bool:
    return kind.half_close


def ending_both_ways(kind: Kind) -> bool:
    return not kind.half_close


def telling_cuts(kind: Kind) -> bool:
    return kind.tells_cut


Story = Callable[[Pair], Awaitable[None]]


def every_kind(
    condition: Callable[[Kind], bool] = lambda kind: True, *, both_ways: bool = True
) -> Callable[[Story], Callable[..., None]]:
    """Make a test of a story about a pair: on each kind and loop, and with the ends exchanged."""
    cases = [
        pytest.param(kind, loop, flip, id=f"{kind.name}-{name}{'-flipped' * flip}")
        for kind, (name, loop), flip in itertools.product(
            filter(condition, KINDS), LOOPS.items(), (False, True) if both_ways else (False,)
        )
    ]

    def decorate(story: Story) -> Callable[..., None]:
        async def told(kind: Kind, flip: bool) -> None:
            async with kind.open() as pair:
                await story(pair.flipped() if flip else pair)

        @pytest.mark.parametrize(("kind", "loop", "flip"), cases)
        def test(kind: Kind, loop: Loop, flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
            monkeypatch.setattr(drain, "DRAIN_TIMEOUT", SHORT_DRAIN)
            monkeypatch.setattr(drain, "STALL_TIMEOUT", SHORT_DRAIN)
            run(told(kind, flip), loop)

        test.__name__, test.__doc__ = story.__name__, story.__doc__  # type: ignore[attr-defined]
        return test

    return decorate
