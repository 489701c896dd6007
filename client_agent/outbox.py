"""Messages on their way to a gRPC stream: queued without blocking, sent one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

MAX_UNSENT = 16 * 1024
"""Messages that may wait for a peer that does not read: any burst of dials, and 1 MB or so."""


class Outbox:
    """Sends with `write`, from a task that lives only while there is something to send."""

    def __init__(self, write: Callable[[bytes], Awaitable[Any]], tasks: TaskSet) -> None:
        self._write = write
        self._tasks = tasks
        # A deque takes 760 octets also while it is empty: there is one only while it is used.
        self._unsent: deque[bytes] | None = None
        self._sender: asyncio.Task[Any] | None = None

    def put(self, message: bytes) -> bool:
        """Queue a message; False, and nothing queued, if too many wait already."""
        if len(self._unsent or ()) >= MAX_UNSENT:
            return False
        if self._unsent is not None:
            self._unsent.append(message)
        else:
            self._unsent = deque([message])
            self._sender = self._tasks.spawn(self._send_all(self._unsent), "control sender")
        return True

    async def flushed(self) -> None:
        """Wait until what is queued now has been handed to gRPC."""
        if self._sender is not None:
            await asyncio.wait([self._sender])

    async def _send_all(self, unsent: deque[bytes]) -> None:
        try:
            while unsent:
                await self._write(unsent.popleft())
        except (grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError) as error:
            # The reader of the same stream learns of its end, and says so.
            why = " ".join(str(error).split())  # gRPC's are of many lines
            logger.debug("cannot send on a control stream: %s", why)
        finally:
            self._sender = self._unsent = None
