"""A StreamReader that gives what came before a break before it raises the break.

asyncio's raises at once and never gives the bytes it holds, which the other end sent and
the stream delivered whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


class BrokenLastReader(asyncio.StreamReader):
    """asyncio's StreamReader in all else."""

    _buffer: bytearray
    _exception: Exception | None
    _waiter: asyncio.Future[None] | None
    _break: Exception | None = None

    def exception(self) -> Exception | None:
        return self._exception or self._break

    def set_exception(self, exc: Exception) -> None:
        if self._buffer and self._waiter is None:
            self._break = exc
        else:
            super().set_exception(exc)

    # Not a coroutine function: whoever reads would wait in one more coroutine.
    def _wait_for_data(self, func_name: str) -> Awaitable[None]:
        if self._break is not None:
            raise self._break
        waiting: Awaitable[None] = super()._wait_for_data(func_name)  # type: ignore[misc]  # not in the stubs
        return waiting
