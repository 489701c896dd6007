"""What systemd wants to know of a service of Type=notify (sd_notify(3)).

A datagram to the socket that it names in the environment; without one nothing is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from whip_core.names import printable
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

LOOK_INTERVAL = 1.0
"""Seconds between two looks at whether the service is ready: nobody waits for it by the
millisecond, and a watchdog has seconds at least."""


class Notifier:
    """Tells systemd of this process. Never raises and never blocks."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ is an abstract socket, which begins with a zero octet.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = _watchdog_seconds(environ) if address else None
        """Within how many seconds it wants a sign of life; None: never."""

    @property
    def is_asked_for(self) -> bool:
        return bool(self._address)

    def tell(self, *states: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(states).encode(), self._address)
        except OSError as error:
            logger.debug("systemd was not told %s: %s", states, error)


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    with contextlib.suppress(ValueError):
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
        if microseconds > 0 and int(environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid():
            return microseconds / 1e6
    return None


@asynccontextmanager
async def notifying(
    not_ready: Callable[[], str | None], environ: Mapping[str, str] = os.environ
) -> AsyncIterator[None]:
    """Say READY once `not_ready` gives None, what keeps it in STATUS, and at the end STOPPING.

    The watchdog is fed from the event loop: a loop that hangs is a service that hangs.
    """
    notifier = Notifier(environ)
    tasks = TaskSet()
    if notifier.is_asked_for:
        tasks.spawn(_go_on_telling(notifier, not_ready), "systemd")
    try:
        yield
    finally:
        notifier.tell("STOPPING=1")
        await tasks.cancel_all()


async def _go_on_telling(notifier: Notifier, not_ready: Callable[[], str | None]) -> None:
    watchdog = notifier.watchdog_seconds
    # Half of what it may take, as sd_watchdog_enabled(3) advises.
    interval = LOOK_INTERVAL if watchdog is None else min(LOOK_INTERVAL, watchdog / 2)
    was_ready, told = False, None
    while True:
        why = not_ready()
        states = []
        if why is None and not was_ready:
            was_ready = True
            states.append("READY=1")
        status = printable(f"not ready: {why}" if why else "ready", 200)
        if status != told:
            told = status
            states.append(f"STATUS={status}")
        if watchdog is not None:
            states.append("WATCHDOG=1")
        if states:
            notifier.tell(*states)
        await asyncio.sleep(interval)
