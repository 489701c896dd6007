"""Keeps as many reverse connections parked at a broker as it asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from client_agent.backoff import Backoff
from whip_core.deadlines import Deadlines
from whip_core.errors import WhipError
from whip_core.framed import FramedConnection
from whip_core.parking import MAX_PARKED
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

REFILL_DELAY = 0.05
"""Seconds before a connection that was taken is replaced, and before more are opened on
demand: after a short stream it is back by then, and spares a handshake. A dial that finds
none parked in between does not wait for this: it asks for a connection of its own."""


class Parker:
    """Opens connections in the background with `open_one` until enough are parked."""

    def __init__(self, open_one: Callable[[], Awaitable[FramedConnection]], tasks: TaskSet) -> None:
        self._open_one = open_one
        self._tasks = tasks
        self._parked: set[FramedConnection] = set()
        self._lent = Deadlines(self._kept)
        self._target = 0
        self._opening = 0
        self._backoff = Backoff()
        self._failing = False
        self._unproven: set[FramedConnection] = set()
        self._refilling: asyncio.TimerHandle | None = None

    def aim(self, target: int) -> None:
        """Keep `target` connections parked from now on, within our own bound."""
        at_first = not self._target
        self._target = min(target, MAX_PARKED)
        if at_first:
            self._refill()
        else:
            self._refill_later()

    def parked(self, connection: FramedConnection) -> None:
        self._lent.drop(connection)
        self._parked.add(connection)

    def taken(self, connection: FramedConnection) -> None:
        """A stream was opened on it: unless that is short, another takes its place."""
        if self._failing or connection in self._unproven:
            self._proven(connection)
        self._parked.discard(connection)
        self._lent.drop(connection)  # its last end may have come together with this open
        self._lent.add(connection, REFILL_DELAY)

    def lost(self, connection: FramedConnection) -> None:
        """It is gone. One that the broker never used it may have refused: that is a failure."""
        self._parked.discard(connection)
        self._lent.drop(connection)
        if connection not in self._unproven:
            self._refill_later()
            return
        self._unproven.discard(connection)
        self._failing = True
        if self._target and not self._opening:
            self._opening += 1
            self._tasks.spawn(self._open_later(), "park a connection")

    def _proven(self, connection: FramedConnection) -> None:
        self._unproven.discard(connection)
        self._failing = False
        self._backoff.reset()

    def close(self) -> None:
        """Keep none any more."""
        self._target = 0
        if self._refilling is not None:
            self._refilling.cancel()
        self._lent.clear()
        for connection in tuple(self._parked):
            connection.close()

    def _kept(self, _: FramedConnection) -> None:
        """The stream goes on for longer."""
        self._refill()

    def _refill_later(self) -> None:
        if self._refilling is None:
            loop = asyncio.get_running_loop()
            self._refilling = loop.call_later(REFILL_DELAY, self._refill)

    def _refill(self) -> None:
        self._refilling = None
        at_once = 1 if self._failing else self._target
        present = len(self._parked) + len(self._lent)
        while self._opening < at_once and present + self._opening < self._target:
            self._opening += 1
            self._tasks.spawn(self._open(), "park a connection")

    async def _open_later(self) -> None:
        try:
            await asyncio.sleep(self._backoff.next_delay())
        finally:
            self._opening -= 1
        # The broker may have closed a surplus connection; its lower target reaches us on the
        # control stream, not here.
        self._refill()

    async def _open(self) -> None:
        try:
            connection = await self._open_one()
            if not connection.lost:
                self._parked.add(connection)
                self._unproven.add(connection)
        except WhipError as error:
            if not self._failing:
                logger.warning("cannot park a connection (will keep trying): %s", error)
            self._failing = True
            await asyncio.sleep(self._backoff.next_delay())
        finally:
            self._opening -= 1
        self._refill()
