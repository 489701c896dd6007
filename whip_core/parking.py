"""How many reverse connections to keep parked for one agent: sized by demand, no I/O.

The agent is told a *target*: how many idle connections it shall keep open, and it opens
new ones in the background when there are fewer. The target rises by one for each dial that
finds none parked (of a burst of 20 there were 20 too few), and comes down again window by
window while some stay idle throughout: those were not needed. Connections that return from
a stream are kept beyond the target for as long as the traffic uses them, and the surplus of
a whole window is closed.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_PARKED = 1
"""Enough for a dial now and then to cost one round trip, and cheap for 10,000 agents."""
MAX_PARKED = 64
"""Bounds what one busy agent may hold at a broker (DESIGN §12: 40 KB each)."""
WINDOW = 10.0
"""Seconds over which demand is looked at: bursts repeat within it, idle memory is back soon."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What the end of a window asks for: a new target to tell, idle connections to close."""

    target: int
    surplus: int


class Demand:
    """What dials made of one agent's parked connections lately."""

    def __init__(self) -> None:
        self.target = MIN_PARKED
        self._fewest_idle: int | None = None
        self._missed = False

    @property
    def at_rest(self) -> bool:
        """Whether the next window can change nothing, so that no timer needs to run."""
        return self.target == MIN_PARKED and not self._missed

    def used(self, idle_left: int) -> None:
        """A dial took a parked connection; `idle_left` others are idle still."""
        if self._fewest_idle is None or idle_left < self._fewest_idle:
            self._fewest_idle = idle_left

    def missed(self) -> bool:
        """A dial found none parked. True if the target rose and has to be told."""
        self._fewest_idle = 0
        self._missed = True
        raised = min(self.target + 1, MAX_PARKED)
        rose = raised != self.target
        self.target = raised
        return rose

    def window_passed(self, idle: int) -> Adjustment:
        """Begin a new window, with `idle` connections parked now."""
        unused = idle if self._fewest_idle is None else min(self._fewest_idle, idle)
        if not self._missed:
            self.target = max(MIN_PARKED, self.target - (unused + 1) // 2)
        self._fewest_idle = None
        self._missed = False
        return Adjustment(self.target, max(0, min(unused, idle - self.target)))
