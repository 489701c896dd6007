"""An event loop in a thread of its own, so that tests of any kind can use what lives on it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for anything that is waited for: far more than what works ever takes."""


class LoopThread:
    """A context manager. What was entered on it is left again, last first, at its end."""

    def __enter__(self) -> LoopThread:
        self._loop = asyncio.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, name="whip", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.run(self._stack.aclose())
            self.run(_cancel_the_rest())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop, while this thread waits; its result, or what it raises."""

        async def in_time() -> T:
            async with asyncio.timeout(PATIENCE):
                return await coroutine

        return asyncio.run_coroutine_threadsafe(in_time(), self._loop).result()

    def enter(self, context: contextlib.AbstractAsyncContextManager[T]) -> T:
        """Enter it on the loop; it is left when this ends."""
        return self.run(self._stack.enter_async_context(context))


async def _cancel_the_rest() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
