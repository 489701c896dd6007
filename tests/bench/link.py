"""A link with a long way to go: a TCP relay that delivers everything later.

As a program: `link.py ROUND_TRIP_SECONDS LISTEN_PORT:TARGET_PORT…`, all on 127.0.0.1.

What arrives at one end comes out at the other half a round trip later, in order, ends
included. The kernel accepts a connection at once, which a long link would not: so that a
new connection costs its round trip too, the first octets wait for one more.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque

IN_FLIGHT = 4 << 20
"""Octets on the way in one direction, above which a reader is paused: no row sends so much."""


class _Way:
    """One direction, from `source` to the source of the way `back`, once that is there."""

    back: _Way | None = None

    def __init__(self, delay: float, source: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._open_at = 0.0
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self.source = source
        self.ended = False

    def open_in(self, seconds: float) -> None:
        self._open_at = self._loop.time() + seconds

    def put(self, data: bytes | None) -> None:
        """Send octets on their way, or the end of this direction (b""), or of both (None)."""
        due = max(self._loop.time(), self._open_at) + self._delay
        self._queue.append((due, data))
        self._size += len(data or b"")
        if self._size > IN_FLIGHT and not self.source.is_closing():
            self.source.pause_reading()
        self.arm()

    def arm(self) -> None:
        if self._timer is None and self._queue and self.back is not None:
            self._timer = self._loop.call_at(self._queue[0][0], self._deliver, self.back)

    def _deliver(self, back: _Way) -> None:
        self._timer = None
        sink = back.source
        while self._queue and self._queue[0][0] <= self._loop.time():
            _, data = self._queue.popleft()
            self.ended = self.ended or not data
            if data:
                self._size -= len(data)
                sink.write(data)
            elif data is None or back.ended:
                sink.close()
                self.source.close()
            elif not sink.is_closing():
                sink.write_eof()
        if self._size <= IN_FLIGHT and not self.source.is_closing():
            self.source.resume_reading()
        self.arm()


class _End(asyncio.Protocol):
    """One end of a relayed connection: what it receives goes its way."""

    way: _Way

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self.made = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.way = _Way(self._delay, transport)
        self.made.set_result(transport)

    def data_received(self, data: bytes) -> None:
        self.way.put(data)

    def eof_received(self) -> bool:
        self.way.put(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.way.put(None)


class Link:
    """An async context manager: listens on `listen_port` (0: any) and leads to `target_port`."""

    def __init__(self, round_trip: float, target_port: int, listen_port: int = 0) -> None:
        self._round_trip = round_trip
        self._target_port = target_port
        self._connecting: set[asyncio.Task[None]] = set()
        self._transports: list[asyncio.Transport] = []
        self.port = listen_port

    async def __aenter__(self) -> Link:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._connecting:
            task.cancel()
        for transport in self._transports:
            transport.abort()

    def _accept(self) -> _End:
        near = _End(self._round_trip / 2)
        task = asyncio.get_running_loop().create_task(self._connect(near), name="connect")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return near

    async def _connect(self, near: _End) -> None:
        transport = await near.made
        self._transports.append(transport)
        near.way.open_in(self._round_trip)
        loop = asyncio.get_running_loop()
        try:
            far_transport, far = await loop.create_connection(
                lambda: _End(self._round_trip / 2), "127.0.0.1", self._target_port
            )
        except OSError:
            transport.abort()
            return
        self._transports.append(far_transport)
        near.way.back, far.way.back = far.way, near.way
        near.way.arm()
        far.way.arm()


async def main(round_trip: float, ways: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        for way in ways:
            listen_port, target_port = map(int, way.split(":"))
            group.create_task(_serve(Link(round_trip, target_port, listen_port)), name=way)


async def _serve(link: Link) -> None:
    async with link:
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))
