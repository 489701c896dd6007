"""Many deadlines of about the same length on one timer of the event loop.

Nearly all of them are met. A timer for each would cost more than what it guards: making and
cancelling one takes uvloop some ten microseconds.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Waiting(Protocol):
    """Who has a deadline. Compared by identity."""

    def too_late(self) -> None:
        """The deadline has passed, and is forgotten."""


class Deadlines:
    """Those who wait, in the order in which they came.

    They are looked at in that order: one whose time is shorter than that of somebody before
    it may be told late, by as much. So lengths that differ much need their own `Deadlines`.
    """

    def __init__(self) -> None:
        self._waiting: dict[Waiting, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiting: Waiting, seconds: float) -> None:
        """Tell `waiting` when `seconds` have passed, unless it is dropped before."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._waiting[waiting] = deadline
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._look)

    def drop(self, waiting: Waiting) -> None:
        """It has no deadline any more; no error if it had none."""
        self._waiting.pop(waiting, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while self._waiting:
                waiting, deadline = next(iter(self._waiting.items()))
                if deadline > now:
                    return
                del self._waiting[waiting]
                waiting.too_late()
        finally:
            self._timer = None
            if self._waiting:
                self._timer = loop.call_at(next(iter(self._waiting.values())), self._look)
