"""Two transports joined: what one receives the other sends, as fast as the slower takes it.

No queue and no task in between. `pause_writing` of one pauses the reading of the other, so
that at most a write buffer is held for a slow reader; an end is passed on as an end where
the other side can half-close, a reset as a reset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from whip_core.sockets import abort_with_reset
from whip_core.stream import Stream


class RelaySide(asyncio.Protocol):
    """The protocol of one of the two transports; `join` makes it one of a pair.

    Until it is joined it reads nothing, so no byte of a service that speaks first is lost.
    """

    takes_views = True

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: RelaySide | None = None
        self._ended = False
        self._lost = False
        self._on_done: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.peer is None:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        assert self.peer is not None and self.peer.transport is not None
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        peer = self.peer
        if peer is None or peer.transport is None:
            return True
        if peer.transport.can_write_eof():
            peer.transport.write_eof()
            if peer._ended:
                self._close_both()
            return True
        peer.transport.close()
        return False

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer._lost:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer._lost:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        peer = self.peer
        if peer is not None and peer.transport is not None and not peer._lost:
            if exc is not None:
                break_off(peer.transport)
            else:
                peer.transport.close()
        if self._on_done is not None and (peer is None or peer._lost):
            self._on_done()

    def _close_both(self) -> None:
        """Both directions have ended: nothing is left to carry."""
        for side in (self, self.peer):
            if side is not None and side.transport is not None:
                side.transport.close()


def join(one: RelaySide, other: RelaySide, on_done: Callable[[], None] | None = None) -> None:
    """Start to relay between two sides whose transports are open.

    `on_done` is called once, when both transports are lost.
    """
    one.peer, other.peer = other, one
    one._on_done = other._on_done = on_done
    for side, peer in ((one, other), (other, one)):
        assert side.transport is not None
        if side._lost:
            side.connection_lost(ConnectionResetError("lost before the relay began"))
        elif not peer._lost:
            side.transport.resume_reading()


def break_off(transport: asyncio.Transport) -> None:
    """Pass a reset on: the far end must not take what it got for all there was."""
    if isinstance(transport, Stream):
        transport.reset("the other side of the relay was reset")
    else:
        abort_with_reset(transport)
