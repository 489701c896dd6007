"""Many deadlines of about the same length on one timer of the event loop.

Nearly all of them are met. A timer for each would cost more than what it guards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Who = TypeVar("Who", bound=Hashable)


class Deadlines(Generic[Who]):
    """Those who wait, in the order in which they came; `too_late` is told of whoever is late.

    They are looked at in that order: one whose time is shorter than that of somebody before
    it may be told late, by as much. So lengths that differ much need their own `Deadlines`.
    """

    def __init__(self, too_late: Callable[[Who], None]) -> None:
        self._too_late = too_late
        self._waiting: dict[Who, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, who: Who) -> bool:
        return who in self._waiting

    def add(self, who: Who, seconds: float) -> None:
        """Tell of `who` when `seconds` have passed, unless it is dropped before."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._waiting[who] = deadline
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._look)

    def drop(self, who: Who) -> None:
        """It has no deadline any more; no error if it had none."""
        self._waiting.pop(who, None)

    def clear(self) -> None:
        """Nobody has a deadline any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while self._waiting:
                who, deadline = next(iter(self._waiting.items()))
                if deadline > now:
                    return
                del self._waiting[who]
                self._too_late(who)
        finally:
            self._timer = None
            if self._waiting:
                self._timer = loop.call_at(next(iter(self._waiting.values())), self._look)
