"""Accepting connections so that a shortage of file descriptors passes.

The event loops' own servers do badly then: asyncio's logs a traceback for each connection
that waits, uvloop's tries again at once and for ever, which takes half a core, and may close
its listening socket for good. This one waits a second and tries again; the kernel keeps who
comes meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections the kernel may hold for us: a restart brings every agent at once."""
RETRY_DELAY = 1.0
"""Seconds before another try when there is no descriptor or memory for a connection."""
AT_ONCE = 64
"""Connections accepted before others have their turn."""

_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts on a bound `sock` from creation until `close`, `factory`'s protocol for each."""

    def __init__(self, sock: socket.socket, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self._sock = sock
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._tasks = TaskSet()
        self._retry: asyncio.TimerHandle | None = None
        self._short = False
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._listen()

    def close(self) -> None:
        """Take no more connections; those that were accepted go on."""
        if self._sock.fileno() == -1:
            return
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    async def wait_closed(self) -> None:
        """After `close`: those that were accepted and have no protocol yet are dropped."""
        await self._tasks.cancel_all()

    def _listen(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _SHORTAGE:
                    self._wait_out(error)
                    return
                continue  # whoever it was has gone already
            self._short = False
            self._tasks.spawn(self._adopt(connection), "accept")

    def _wait_out(self, error: OSError) -> None:
        if not self._short:
            logger.error(
                "cannot accept connections: %s (will keep trying); raise the open-file limit",
                error.strerror,
            )
        self._short = True
        self._loop.remove_reader(self._sock)
        self._retry = self._loop.call_later(RETRY_DELAY, self._listen)

    async def _adopt(self, connection: socket.socket) -> None:
        try:
            # Either loop makes it non-blocking and sets TCP_NODELAY itself.
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError as error:
            logger.debug("an accepted connection was lost: %s", error)
            connection.close()
        except BaseException:
            connection.close()
            raise
