"""The agent's parker: what it opens when connections come and go."""

from __future__ import annotations

import asyncio

import pytest

from client_agent import parker
from client_agent.parker import Parker
from tunnel import run
from whip_core.framed import FramedConnection
from whip_core.frames import Side
from whip_core.tasks import TaskSet
from whip_core.testing import memory_pair


def test_a_parker_that_was_closed_opens_nothing_for_a_connection_it_loses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parker.Backoff, "next_delay", lambda _: 0.0)
    opened: list[FramedConnection] = []

    async def main() -> None:
        tasks = TaskSet()
        enough = asyncio.Event()

        async def open_one() -> FramedConnection:
            connection = FramedConnection(Side.ACCEPTOR, on_lost=keeper.lost)
            memory_pair(connection, asyncio.Protocol())
            opened.append(connection)
            enough.set()
            return connection

        keeper = Parker(open_one, tasks)
        keeper.aim(1)
        await enough.wait()
        while len(tasks):
            await asyncio.sleep(0)
        keeper.close()
        while not opened[0].lost:
            await asyncio.sleep(0)
        assert len(tasks) == 0
        assert len(opened) == 1

    run(main())


def test_a_connection_that_was_never_used_and_that_the_broker_closed_as_too_many_stays_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parker.Backoff, "next_delay", lambda _: 0.0)
    opened: list[FramedConnection] = []

    async def main() -> None:
        tasks = TaskSet()

        async def open_one() -> FramedConnection:
            connection = FramedConnection(Side.ACCEPTOR, on_lost=keeper.lost)
            memory_pair(connection, asyncio.Protocol())
            opened.append(connection)
            return connection

        keeper = Parker(open_one, tasks)
        keeper.aim(2)
        while len(opened) < 2 or len(tasks):
            await asyncio.sleep(0)
        # What is closed comes first, that fewer are wanted comes a moment later.
        opened[0].close()
        while not opened[0].lost:
            await asyncio.sleep(0)
        keeper.aim(1)
        while len(tasks):
            await asyncio.sleep(0)
        assert len(opened) == 2
        # One that is missing is replaced as ever.
        opened[1].close()
        while len(opened) < 3 or len(tasks):
            await asyncio.sleep(0)
        keeper.close()

    run(main())
