"""When a session is replaced because its certificate ends, and a newer one is there.

A broker ends a session together with the certificate that it began with. So an agent registers
anew some time before, with the certificate that it has by then, beside the session that there
is; the broker lets the new one take its place. A certificate that nobody renews changes nothing.
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable

RENEW_BEFORE = 3600.0
"""Seconds before its certificate's end in which a session is replaced: time for many tries, more
than clocks are apart, and little of what certificates are good for."""
RETRY_DELAY = 1.0
"""Seconds before another try, at least."""


class Renewal:
    """Of one session, whose certificate ends at `expires_at`. Times are seconds of `time.time`.

    Sessions that began together are replaced over half of the time there is, which ends
    with the certificate: many agents have theirs renewed in the same moment. `random`
    gives floats in [0, 1).
    """

    def __init__(self, expires_at: float, random: Callable[[], float] = _random.random) -> None:
        self._expires_at = expires_at
        self._random = random
        self._due_at: float | None = None

    def is_due(self, now: float, newest: float) -> bool:
        """Whether to begin; `newest` is when the certificate ends that would be used now."""
        if newest <= self._expires_at:
            return False
        if self._due_at is None:
            time_there_is = min(RENEW_BEFORE, self._expires_at - now)
            self._due_at = self._expires_at - time_there_is * (1 - self._random() / 2)
        return now >= self._due_at

    def failed(self, now: float) -> None:
        """The broker was not reached, or refused: again within half of what is left."""
        left = self._expires_at - now
        self._due_at = now + max(RETRY_DELAY, left * self._random() / 2)
