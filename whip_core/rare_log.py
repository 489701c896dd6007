"""Log lines that strangers can cause, so that they cannot fill a disk with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LINES = 20
"""Lines in each `WINDOW`: enough to see what goes on."""
WINDOW = 60.0
"""Seconds. 20 lines of 200 octets a minute are 6 MB a day at the most."""


class RareLog:
    """Warns, at most `LINES` times in a `WINDOW`; then says how many lines were left out."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._began = clock()
        self._lines = 0

    def warning(self, text: str, *arguments: object) -> None:
        now = self._clock()
        if now - self._began >= WINDOW:
            if self._lines > LINES:
                self._logger.warning("%d more lines like these were left out", self._lines - LINES)
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= LINES:
            self._logger.warning(text, *arguments)
        else:
            self._logger.debug(text, *arguments)
