"""Registrations that come and go, in each way that they can, leave nothing in the broker."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import pytest

from bad_link import BadLink
from tunnel import Watch, broker_settings, registration, run, until
from whip_core import Broker, control
from whip_core.testing.agent import ScriptedAgent

pytestmark = pytest.mark.once

TIMES = 200
IDLE = 3.0
"""Seconds that a connection without a control stream is kept, also one whose path is dead."""
LAST_ONES = 10
"""Objects of each type that the last few may still hold; one for each time would be 200."""

CARRIERS = ("h2.", "whip_core.grpc_calls", "whip_core.control_", "whip_core.tls_")


def tasks() -> Counter[str]:
    """What runs, by what it does, besides the link's own."""
    running = Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]
    return Counter({what: count for what, count in running.items() if "BadLink" not in what})


def objects() -> Counter[str]:
    """What there is of the types of the control stream and below, and of tasks that have ended
    and that somebody holds."""
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    found = Counter(kind.__name__ for kind in kinds if str(kind.__module__).startswith(CARRIERS))
    ended = (each for each in gc.get_objects() if isinstance(each, asyncio.Task) and each.done())
    return found + Counter({"ended task": sum(1 for _ in ended)})


@pytest.mark.parametrize("way", ["leaves", "drains", "breaks off", "is reset", "is silent"])
def test_nothing_of_them_is_left(way: str) -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            Broker(broker_settings(handshake_timeout=IDLE), plugins=[watch]) as broker,
            BadLink(broker.control_port) as link,
        ):

            async def come_and_go() -> None:
                gone = len(watch.left) + 1
                agent = ScriptedAgent(("127.0.0.1", link.port), registration())
                async with agent:
                    await agent.expect(control.Registered)
                    if way == "is reset":
                        link.reset()
                    elif way == "is silent":
                        link.silence()
                        broker.kick("instance1.testdom")  # as its unanswered pings would do
                        link.heal()
                    elif way == "breaks off":
                        await agent.vanish()
                    else:
                        if way == "drains":
                            await agent.send(control.Draining("it stops"))
                        await agent.leave()
                    await watch.until(lambda: len(watch.left) == gone)

            await come_and_go()  # the first makes what is kept for all
            before, held = tasks(), objects()
            for _ in range(TIMES):
                await come_and_go()
            await until(lambda: not tasks() - before)
            await until(lambda: all(count <= LAST_ONES for count in (objects() - held).values()))

    run(main())
