"""The parked connections of one session: kept, taken, and sized by demand (`parking`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from whip_core.framed import FramedConnection
from whip_core.parking import MAX_PARKED, WINDOW, Demand


class ParkedPool:
    """Idle reverse connections of one agent.

    `tell` is called with the target whenever the agent has to be told a new one. Until
    `start`, and after `close`, nothing is kept: what is parked is closed.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._connections: list[FramedConnection] = []
        self._demand = Demand()
        self._window: asyncio.TimerHandle | None = None
        self._open = False

    def __len__(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        """Tell a newly registered agent how many connections to keep parked."""
        self._open = True
        self._tell(self._demand.target)

    def close(self) -> None:
        """Close what is parked, and keep nothing from here on."""
        self._open = False
        if self._window is not None:
            self._window.cancel()
            self._window = None
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def park(self, connection: FramedConnection) -> None:
        """Keep an idle connection for the next dial, or close it where there are enough."""
        if self._open and len(self._connections) < MAX_PARKED:
            self._connections.append(connection)
            if len(self._connections) > self._demand.target:
                self._watch_demand()
        else:
            connection.close()

    def forget(self, connection: FramedConnection) -> None:
        """The connection is gone."""
        if connection in self._connections:
            self._connections.remove(connection)

    def take(self) -> FramedConnection | None:
        """A parked connection, the one that was used last; None if there is none."""
        while self._connections:
            connection = self._connections.pop()
            if connection.is_parked:
                self._demand.used(len(self._connections))
                return connection
        return None

    def missed(self) -> None:
        """A dial got nothing from here: there should have been more."""
        if self._open:
            if self._demand.missed():
                self._tell(self._demand.target)
            self._watch_demand()

    def _watch_demand(self) -> None:
        if self._window is None:
            loop = asyncio.get_running_loop()
            self._window = loop.call_later(WINDOW, self._window_passed)

    def _window_passed(self) -> None:
        self._window = None
        before = self._demand.target
        adjustment = self._demand.window_passed(len(self._connections))
        if adjustment.target != before:
            self._tell(adjustment.target)
        for _ in range(adjustment.surplus):
            # The ones that have been idle longest; the next dial takes the other end.
            self._connections.pop(0).close()
        if not self._demand.at_rest or len(self._connections) > self._demand.target:
            self._watch_demand()
