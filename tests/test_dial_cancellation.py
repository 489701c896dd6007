"""A dial is cancelled at each of its awaits in turn: it leaves nothing behind anywhere."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from tunnel import Watch, broker_settings, registration, run, scripted, until
from whip_core import Broker, control, hookimpl
from whip_core.testing.agent import FramedReverse, ScriptedAgent


class Interrupted:
    """Awaits a coroutine, and cancels the task at the coroutine's `at`-th suspension (from 0).

    `late` cancels it when what it waits for has come, and before it can go on with that.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, *, late: bool) -> None:
        self._coroutine = coroutine
        self._left = at
        self._late = late

    @property
    def was_reached(self) -> bool:
        return self._left < 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = functools.partial(self._coroutine.send, None)
        while True:
            try:
                waited_for = step()
            except StopIteration as stop:
                return stop.value
            self._suspended(waited_for)
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001  # the coroutine gets whatever it is
                step = functools.partial(self._coroutine.throw, error)
            else:
                step = functools.partial(self._coroutine.send, None)

    def _suspended(self, waited_for: asyncio.Future[Any] | None) -> None:
        if self._left == 0:
            task = asyncio.current_task()
            assert task is not None
            if self._late and waited_for is not None:
                waited_for.add_done_callback(lambda _: task.cancel())
            else:
                asyncio.get_running_loop().call_soon(task.cancel)
        self._left -= 1


class Hesitant:
    """Makes the asking of plugins an await, too."""

    @hookimpl
    async def whip_authorize_dial(self) -> None:
        await asyncio.sleep(0)


class AgentsPart:
    """Does all that an agent should; each method ends when the connection it opened is gone."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self._agent = agent
        self.was_asked = False

    async def answer(self) -> None:
        """Answer a request for a connection."""
        request = await self._agent.expect(control.Connect)
        self.was_asked = True
        if self._agent.registered is None:
            reader, _ = await self._agent.connect_back(request)
            await reader.read()
        else:
            await self._accept(await self._agent.connect_framed(request))

    async def park(self) -> None:
        """Have a connection parked before anybody asks."""
        await self._accept(await self._agent.connect_framed())

    async def _accept(self, reverse: FramedReverse) -> None:
        async def accept() -> None:
            await reverse.asked()
            self.was_asked = True
            reverse.accept()

        accepting = asyncio.get_running_loop().create_task(accept())
        try:
            await reverse.lost()
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])


async def dial_once(kind: str, at: int, late: bool) -> bool:
    """Whether the dial has an `at`-th await. If so it was cancelled there, and left nothing."""
    watch = Watch()
    fields = {"protocol_version": 0, "instance_id": ""} if kind == "old" else {}
    async with Broker(broker_settings(), plugins=[watch, Hesitant()]) as broker:
        loop = asyncio.get_running_loop()
        dial = Interrupted(
            broker.open_connection("instance1.testdom", 80, wait=60, timeout=60), at, late=late
        )

        async def call() -> Any:
            return await dial

        agent = scripted(broker, registration(**fields))
        part = AgentsPart(agent)
        if kind == "parked":
            await agent.__aenter__()
            await agent.expect(control.Registered)
            agents_part = loop.create_task(part.park())
            await until(lambda: broker.agents[0].parked == 1)
            calling = loop.create_task(call())
        else:
            calling = loop.create_task(call())
            await asyncio.sleep(0)  # now it waits for the agent
            await agent.__aenter__()
            agents_part = loop.create_task(part.answer())
        await asyncio.wait([calling])
        if dial.was_reached:
            assert calling.cancelled()
            await nothing_is_left(broker, watch)
            if part.was_asked:
                await agents_part
        else:
            calling.result()[1].transport.abort()
        agents_part.cancel()
        await asyncio.wait([agents_part])
        await agent.__aexit__(None, None, None)
        return dial.was_reached


async def nothing_is_left(broker: Broker, watch: Watch) -> None:
    await watch.until(lambda: len(watch.joined) == 1)
    [session] = broker._registrar.registry
    assert len(broker._registrar.awaited) == 0
    assert not session._opening
    assert (session.streams, watch.opened, watch.closed, watch.dials) == (0, [], [], [])
    # What was asked of the agent was asked before this, so when it answers we know of it.
    session.ping()
    await watch.until(lambda: len(watch.round_trips) == 1)


@pytest.mark.parametrize("late", [False, True], ids=["while waiting", "as the answer comes"])
@pytest.mark.parametrize(("kind", "awaits"), [("ours", 4), ("old", 3), ("parked", 2)])
def test_a_dial_that_is_cancelled_at_any_await_leaves_nothing_behind(
    kind: str, awaits: int, late: bool
) -> None:
    async def main() -> None:
        at = 0
        while await dial_once(kind, at, late):
            at += 1
        assert at >= awaits

    run(main())
