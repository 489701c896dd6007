"""Noticing that the path of a parked connection is dead, without TCP's own timers.

The opener sends a PING every `PING_INTERVAL` and gives up when the answer is not there by
the next one. The acceptor sends none: it gives up when nothing at all has come for
`SILENCE_LIMIT`. So both ends know within 45 s, for one small frame each way, and NATs on
the way keep the connection open. While a stream is open neither side judges by silence: a
reader that is paused answers no PING. Then the kernels know: its own probes find a dead path
under an idle stream (`sockets.keep_alive`), and one that sends is given up when nothing of
it has been acknowledged for `SILENCE_LIMIT`, long before the system's quarter of an hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PING_INTERVAL = 15.0
"""Seconds: a dead path is noticed within two of them; NATs forget after 60 s or more."""
SILENCE_LIMIT = 40.0
"""Seconds: two PINGs missed, and some time to spare."""


class Heartbeat:
    """The timer of one connection. `ping` sends one (opener), or is None (acceptor).

    `unanswered_for` says for how many seconds nothing that was sent was acknowledged.
    """

    def __init__(
        self,
        is_parked: Callable[[], bool],
        ping: Callable[[], None] | None,
        give_up: Callable[[str], None],
        unanswered_for: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._unanswered_for = unanswered_for
        self._is_parked = is_parked
        self._ping = ping
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._unanswered = False
        self._arm(PING_INTERVAL if ping else SILENCE_LIMIT)

    def heard(self) -> None:
        """Something came from the peer: it lives."""
        self._heard_at = self._loop.time()
        self._unanswered = False

    def stop(self) -> None:
        self._timer.cancel()

    def _arm(self, delay: float) -> None:
        self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if not self._is_parked():
            self.heard()
            if (unanswered := self._unanswered_for()) >= SILENCE_LIMIT:
                self._give_up(f"what was sent is not acknowledged for {unanswered:.0f} s")
            else:
                self._arm(PING_INTERVAL)
        elif self._ping is None:
            silent = self._loop.time() - self._heard_at
            if silent >= SILENCE_LIMIT:
                self._give_up(f"nothing came for {silent:.0f} s")
            else:
                self._arm(SILENCE_LIMIT - silent)
        elif self._unanswered:
            self._give_up(f"a ping was not answered within {PING_INTERVAL:g} s")
        else:
            self._unanswered = True
            self._ping()
            self._arm(PING_INTERVAL)
