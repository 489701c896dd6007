"""Connecting to the service beside the agent."""

from __future__ import annotations

import asyncio

from client_agent.exposure import Backend, UnixBackend
from whip_core.deadlines import Deadlines
from whip_core.errors import ServiceRefused
from whip_core.relay import RelaySide

CONNECT_TIMEOUT = 8.0
"""Seconds a service has to take a connection. Less than a broker's whole dial (10 s), so that
the agent can still say whose fault it is, and enough for TCP to try four times (0, 1, 3, 7 s)."""


class Services:
    """Connects to services. All that is under way shares one timer; `close` ends that."""

    def __init__(self) -> None:
        self._connecting = Deadlines(_expire)

    def close(self) -> None:
        self._connecting.clear()

    async def connect(self, backend: Backend) -> RelaySide:
        """A relay side on a new connection to the service.

        Raises `ServiceRefused` saying which service, and why it did not answer.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                self._connecting.add(limit, CONNECT_TIMEOUT)
                try:
                    if isinstance(backend, UnixBackend):
                        _, side = await loop.create_unix_connection(RelaySide, backend.path)
                    else:
                        _, side = await loop.create_connection(
                            RelaySide, backend.host, backend.port
                        )
                finally:
                    self._connecting.drop(limit)
        except TimeoutError as error:
            raise ServiceRefused(
                f"the agent cannot connect to its service {backend} within {CONNECT_TIMEOUT:g} s"
            ) from error
        except (OSError, ValueError) as error:
            raise ServiceRefused(
                f"the agent cannot reach its service {backend}: {error}"
            ) from error
        return side


def _expire(limit: asyncio.Timeout) -> None:
    limit.reschedule(0)
