"""How long to wait before the next attempt: exponential, with full jitter."""

from __future__ import annotations

import random as _random
from collections.abc import Callable

FIRST_BOUND = 0.5
"""Seconds: what a broker that only restarts needs, and what nobody at a prompt minds."""
GROWTH = 2.0
"""Seven failures in a row reach the maximum: fast at first, soon no burden to anybody."""
RETURN_BOUND = 4.0
"""Seconds over which agents come back that lost a broker together. A thousand are then 250
handshakes and registrations a second, half a core of the broker's; within `FIRST_BOUND`
they would be four cores'."""
MAX_BOUND = 30.0
"""Seconds: a broker that is back has nearly all its agents again within half a minute."""


class Backoff:
    """The delays between attempts that keep failing.

    Each delay is uniform between 0 and a bound in seconds (full jitter, so that the agents
    that lost the same broker do not come back to it in step); the bound starts at `first`
    and doubles with every delay that is given, up to `maximum`. Only the first delay after
    a loss has a bound of its own, `RETURN_BOUND`. `random` gives floats in [0, 1).
    """

    def __init__(
        self,
        *,
        first: float = FIRST_BOUND,
        maximum: float = MAX_BOUND,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._first = min(first, maximum)
        self._maximum = maximum
        self._random = random
        self._bound = self._first
        self._lost = False

    def next_delay(self) -> float:
        """Seconds to wait before the next attempt; never fails, however often it is asked."""
        if self._lost:
            self._lost = False
            return min(RETURN_BOUND, self._maximum) * self._random()
        delay = self._bound * self._random()
        self._bound = min(self._bound * GROWTH, self._maximum)
        return delay

    def reset(self) -> None:
        """An attempt succeeded: the next failure starts with the first bound again."""
        self._bound = self._first
        self._lost = False

    def lost(self) -> None:
        """What had succeeded was lost, and maybe by many others at the same moment."""
        self.reset()
        self._lost = True

    def __repr__(self) -> str:
        bound = min(RETURN_BOUND, self._maximum) if self._lost else self._bound
        return f"<Backoff next delay within {bound:g} s>"
