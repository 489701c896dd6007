"""Two transports joined: what one receives the other sends, as fast as the slower takes it.

No queue and no task in between. `pause_writing` of one pauses the reading of the other, so
that at most a write buffer is held for a slow reader; an end is passed on as an end where
the other side can half-close, a reset as a reset. A process that is killed while it relays
resets its sockets too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from whip_core.framed import FramedConnection
from whip_core.sockets import abort_with_reset, duplex, reset_if_we_die
from whip_core.stream import Stream

EARLY_SIZE = 64 * 1024
"""Octets of a side that speaks before it is joined, after which reading is paused: a client's
first words come while its service is dialled, and to pause for them costs more than they do."""


class RelaySide(asyncio.Protocol):
    """The protocol of one of the two transports; `join` makes it one of a pair.

    Until it is joined it keeps what comes, so no byte of a service that speaks first is lost;
    past `EARLY_SIZE` it reads no more.
    """

    takes_views = True
    looks_on = False
    """Whether `data_received` must see what passes once the pair is joined."""

    def __init__(
        self,
        on_made: Callable[[RelaySide], None] | None = None,
        on_gone: Callable[[RelaySide], None] | None = None,
        *,
        resets: bool = False,
    ) -> None:
        """`on_gone` is called if the transport is lost before the side is joined; `resets` is
        said of a socket that the kernel resets already if we die."""
        self.transport: asyncio.Transport | None = None
        self._resets = resets
        self._on_made = on_made
        self._on_gone = on_gone
        self.peer: RelaySide | None = None
        self._early: list[bytes] = []
        self._paused_early = False
        self._has_spoken = False
        self._ended = False
        self._closed = False
        self._lost = False
        self._on_done: Callable[[], None] | None = None

    @classmethod
    def over(cls, transport: asyncio.Transport) -> Self:
        """A side on a transport that is open already, in place of its protocol."""
        side = cls()
        transport.set_protocol(side)
        side.connection_made(transport)
        return side

    def receive_first(self, data: bytes) -> None:
        """Relay `data` before anything that the transport has received."""
        if data:
            self.data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = duplex(transport)
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        peer = self.peer
        if peer is None:
            self._early.append(bytes(data))
            if not self._paused_early and sum(map(len, self._early)) > EARLY_SIZE:
                assert self.transport is not None
                self._paused_early = True
                self.transport.pause_reading()
        else:
            assert peer.transport is not None
            peer.transport.write(data)
            if self._has_spoken and not self.looks_on:
                self._step_aside()
            self._has_spoken = True

    def _step_aside(self) -> None:
        """Have what comes go to the peer without us: a stream's second piece is not its last.

        Before, it would not pay: uvloop asks the system twice when a protocol is set.
        """
        assert self.transport is not None and self.peer is not None
        assert self.peer.transport is not None
        self.data_received = self.peer.transport.write  # type: ignore[method-assign]
        self.transport.set_protocol(self)  # which looks a protocol's methods up once

    def eof_received(self) -> bool:
        self._ended = True
        return self.peer is None or self._pass_end_on()

    def _pass_end_on(self) -> bool:
        """End the peer's sending direction; False if that has ended everything."""
        assert self.peer is not None and self.peer.transport is not None
        peer = self.peer.transport
        if self.peer._ended:
            # Both directions have ended: nothing is left to carry.
            self.peer._close()
            self._close()
            return True
        if not peer.can_write_eof():
            self.peer._close()
            return False
        peer.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer._lost:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer._lost:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        peer = self.peer
        if peer is None and self._on_gone is not None:
            self._on_gone(self)
        if peer is not None and peer.transport is not None and not peer._lost:
            # Only a side that had ended before has said all that it had to say.
            if self._ended:
                peer._close()
            else:
                break_off(peer.transport)
        if peer is None or peer._lost:
            self._part()

    def _part(self) -> None:
        """Both transports are lost: keep nothing alive, not even each other."""
        on_done, self._on_done = self._on_done, None
        if self.peer is not None:
            self.peer._on_done = self.peer.peer = None
            self.peer = None
        if on_done is not None:
            on_done()

    def _begin(self) -> None:
        """Go on, or break off, from where things stood when the pair was joined."""
        assert self.transport is not None
        if self.peer is None:
            return  # both were lost before
        if not (self._resets or isinstance(self.transport, Stream)):
            reset_if_we_die(self.transport, True)
        if self._paused_early and not (self._lost or self._ended or self.peer._lost):
            self.transport.resume_reading()  # first: a peer that is slow pauses it again
        if self._early:
            early, self._early = self._early, []
            for data in early:
                self.data_received(data)
        if self._lost:
            self.connection_lost(ConnectionResetError("lost before the relay began"))
        elif self._ended:
            self._pass_end_on()

    def _close(self) -> None:
        """Nothing is left to send to this side."""
        if self._closed or self.transport is None:
            return
        self._closed = True
        if not isinstance(self.transport, Stream):
            reset_if_we_die(self.transport, False)
        self.transport.close()


def join(one: RelaySide, other: RelaySide, on_done: Callable[[], None] | None = None) -> None:
    """Start to relay between two sides whose transports are open.

    `on_done` is called once, when both transports are lost.
    """
    one.peer, other.peer = other, one
    one._on_done = other._on_done = on_done
    for side in (one, other):
        side._begin()


def splice(stream: Stream, connection: FramedConnection, told: str = "") -> None:
    """Answer the OPEN that a connection waits with: relay it to a stream that is open.

    `told` is what the opener hears of who serves it.
    """
    if connection.lost:
        stream.reset("whoever dialled has gone")
        return
    service, opener = RelaySide(), RelaySide()
    stream.attach(service)
    connection.accept(extra={}, told=told).attach(opener)
    join(service, opener)


def break_off(transport: asyncio.Transport) -> None:
    """Pass a reset on: the far end must not take what it got for all there was."""
    if isinstance(transport, Stream):
        transport.reset("the other side of the relay was reset")
    else:
        abort_with_reset(transport)
