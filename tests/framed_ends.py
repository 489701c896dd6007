"""Both ends of a framed connection in memory, and streams on it that just end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streams import (
    DIAL_ID,
    EXTRA,
    PORT,
    Accepting,
    Framed,
    Recorder,
)
from whip_core.framed import FramedConnection
from whip_core.frames import Side
from whip_core.stream import Stream
from whip_core.testing import memory_pair

NEXT_ID = bytes(range(16, 32))


class Opening(Framed):
    """The opener's end; `parked` counts how often it became free again."""

    def __init__(self) -> None:
        super().__init__(Side.OPENER, on_idle=self._count)
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
