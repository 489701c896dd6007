"""A fabric of brokers in one process: for tests, and for programs that embed several."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import suppress

from whip_core.fabric import MAX_MESSAGE, Answer, FabricError
from whip_core.hookspecs import hookimpl
from whip_core.tasks import TaskSet


class Exchange:
    """What the `LocalFabric`s of one fabric share: as a plugin it makes them.

    `up` may be taken away to see what happens without it.
    """

    def __init__(self) -> None:
        self.up = True
        self.messages = 0
        """Questions and answers carried so far."""
        self.members: list[LocalFabric] = []

    @hookimpl
    def whip_fabric(self) -> LocalFabric:
        return LocalFabric(self)


class LocalFabric:
    """A `Fabric`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._answer: Answer | None = None
        self._held: dict[str, bool] = {}
        self._tasks = TaskSet()

    def __repr__(self) -> str:
        return f"<LocalFabric held={len(self._held)} of {len(self._exchange.members)} members>"

    async def open(self, answer: Answer) -> None:
        self._answer = answer
        self._exchange.members.append(self)

    async def close(self) -> None:
        with suppress(ValueError):
            self._exchange.members.remove(self)
        self._held.clear()
        await self._tasks.cancel_all()

    def hold(self, key: str, *, shared: bool) -> None:
        self._held[key] = shared

    def release(self, key: str) -> None:
        self._held.pop(key, None)

    async def ask(self, key: str, question: bytes, timeout: float) -> AsyncGenerator[bytes, None]:
        if not self._exchange.up:
            raise FabricError("the fabric is down")
        if len(question) > MAX_MESSAGE:
            raise FabricError(f"a message of {len(question)} bytes (at most {MAX_MESSAGE})")
        holders = [member for member in self._exchange.members if key in member._held]
        shared = [member for member in holders if member._held[key]]
        asked = [member for member in holders if member not in shared]
        if shared:
            asked.append(random.choice(shared))  # noqa: S311
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        for member in asked:
            self._exchange.messages += 1
            self._tasks.spawn(member._answer_to(question, answers), f"ask {key}")
        deadline = asyncio.get_running_loop().time() + timeout
        for _ in asked:
            try:
                # Never around the yield, where it would cut short whoever reads the answers.
                async with asyncio.timeout_at(deadline):
                    answer = await answers.get()
            except TimeoutError:
                return
            if answer is not None:
                self._exchange.messages += 1
                yield answer

    async def _answer_to(self, question: bytes, answers: asyncio.Queue[bytes | None]) -> None:
        answers.put_nowait(await self._answer(question) if self._answer is not None else None)
