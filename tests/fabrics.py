"""Brokers joined by a fabric, of each kind, and what may happen to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from processes import Process, free_ports, started
from tunnel import broker_settings, until
from whip_core import Broker
from whip_core.fabric_local import Exchange
from whip_core.settings import FabricSettings


class Kind(Protocol):
    """A fabric that a test can take away and bring back."""

    settings: FabricSettings

    @property
    def plugins(self) -> list[object]: ...
    async def down(self) -> None: ...
    async def up(self) -> None: ...


class Local:
    settings = FabricSettings(url="local", cluster="test")

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.plugins: list[object] = [self.exchange]

    async def down(self) -> None:
        self.exchange.up = False

    async def up(self) -> None:
        self.exchange.up = True


class Nats:
    """A real server, in a process that can be stopped and started again."""

    plugins: list[object] = []  # noqa: RUF012  # nothing is ever added

    def __init__(self, stack: contextlib.AsyncExitStack, *arguments: str) -> None:
        [self.port] = free_ports(1)
        self.settings = FabricSettings(url=f"nats://127.0.0.1:{self.port}", cluster="test")
        self._stack = stack
        self._arguments = arguments
        self._process: Process | None = None

    async def up(self) -> None:
        self._process = await self._stack.enter_async_context(
            started("nats-server", "-a", "127.0.0.1", "-p", str(self.port), *self._arguments)
        )
        await self._process.says("Server is ready")

    async def down(self) -> None:
        assert self._process is not None
        await self._process.end()


@asynccontextmanager
async def local() -> AsyncIterator[Kind]:
    yield Local()


@asynccontextmanager
async def nats() -> AsyncIterator[Kind]:
    async with contextlib.AsyncExitStack() as stack:
        kind = Nats(stack)
        await kind.up()
        yield kind


KINDS: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[Kind]]] = {
    "local": local,
    "nats": nats,
}


@asynccontextmanager
async def joined(kind: Kind, count: int, *plugins: Any, **changes: Any) -> AsyncIterator[Any]:
    """`count` brokers that hear each other; `plugins` are one object, or None, for each."""
    given = [*plugins, *[None] * count]
    async with contextlib.AsyncExitStack() as stack:
        brokers = []
        for number in range(count):
            own = [given[number]] if given[number] is not None else []
            settings = broker_settings(fabric=kind.settings, **changes)
            broker = Broker(settings, plugins=[*own, *kind.plugins])
            brokers.append(await stack.enter_async_context(broker))
        yield brokers


async def eventually(condition: Callable[[], object]) -> None:
    """`until`, for what other brokers come to know."""
    await until(condition)


__all__ = ["KINDS", "Kind", "Local", "Nats", "eventually", "joined", "until"]
