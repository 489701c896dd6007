"""The signals that end a process: the first gracefully, a later one immediately."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

STOPPING = (signal.SIGTERM, signal.SIGINT)
ONE_WISH = 0.5
"""Seconds from the first signal in which others mean the same: `timeout` and a terminal signal
the whole process group, and whoever started us then does so too, within milliseconds. Nobody
has seen what the first one did, and asks for more, in so short a time."""


class StopSignals:
    """Calls `slowly` once, and `at_once` for each signal after `ONE_WISH`."""

    def __init__(
        self,
        slowly: Callable[[], None],
        at_once: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slowly = slowly
        self._at_once = at_once
        self._clock = clock
        self._first: float | None = None

    def listen(self) -> None:
        """Take all `STOPPING` signals of this process, in the event loop that runs."""
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self.told)

    def told(self) -> None:
        """A signal has come."""
        now = self._clock()
        if self._first is None:
            self._first = now
            self._slowly()
        elif now - self._first >= ONE_WISH:
            self._at_once()
