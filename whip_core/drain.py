"""Closing a stream that is still receiving: how long, and how much, its rest is waited for.

A socket closed with unread bytes sends a reset, which may destroy our own last bytes on
their way; a framed connection whose peer has not ended cannot be parked. So what still
comes is read and dropped, within bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

DRAIN_TIMEOUT = 1.0
"""Seconds: a few round trips of a long path; a service that ends with its client does."""
DRAIN_BYTES = 256 * 1024
"""Octets: what may be on its way when we close; beyond that the peer goes on sending."""
STALL_TIMEOUT = 30.0
"""Seconds that our own last bytes may wait for a peer that takes none of them."""


class BoundedDrain:
    """Runs from creation until `cancel`; calls `give_up` when a bound is passed.

    When too much arrives: with `at_once` it gives up as soon as the transport has sent our
    own last bytes (the reset cannot overtake them then); otherwise it stops reading and lets
    them have the remaining time.
    """

    def __init__(
        self, transport: asyncio.Transport, give_up: Callable[[], None], *, at_once: bool = False
    ) -> None:
        self._transport = transport
        self._give_up = give_up
        self._at_once = at_once
        self._bytes_left = DRAIN_BYTES
        self._unsent = transport.get_write_buffer_size()
        self._stalled = 0.0
        self._arm()

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(DRAIN_TIMEOUT, self._expired)

    def _expired(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        self._stalled = self._stalled + DRAIN_TIMEOUT if unsent == self._unsent else 0.0
        if unsent < self._unsent or (unsent and self._stalled < STALL_TIMEOUT):
            # Our own last bytes are still going out: the clock starts when they have.
            self._unsent = unsent
            self._arm()
        else:
            self._give_up()

    def discard(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left >= 0:
            return
        if not self._at_once:
            self._transport.pause_reading()
        elif not self._transport.get_write_buffer_size():
            self._give_up()

    def cancel(self) -> None:
        self._timer.cancel()
