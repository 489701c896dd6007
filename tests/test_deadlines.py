"""Many deadlines on one timer: what is late is told, what was dropped is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streams import run
from whip_core.deadlines import Deadlines


class Waits:
    def __init__(self) -> None:
        self.told = asyncio.Event()

    def too_late(self) -> None:
        self.told.set()


def late(who: Any) -> None:
    who.too_late()


def test_those_whose_time_is_up_are_told_and_those_that_were_dropped_are_not() -> None:
    async def main() -> None:
        deadlines, who = Deadlines(late), [Waits() for _ in range(4)]
        for waits in who:
            deadlines.add(waits, 0.01)
        deadlines.drop(who[1])
        deadlines.drop(who[1])
        for waits in (who[0], who[2], who[3]):
            await waits.told.wait()
        assert not who[1].told.is_set()
        assert len(deadlines) == 0

    run(main())


def test_nobody_is_told_before_the_time_and_one_timer_serves_all() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines, long, longer = Deadlines(late), Waits(), Waits()
        began = loop.time()
        deadlines.add(long, 0.02)
        timer = deadlines._timer
        deadlines.add(longer, 0.04)
        assert deadlines._timer is timer
        await long.told.wait()
        assert loop.time() - began >= 0.02
        await longer.told.wait()
        assert loop.time() - began >= 0.04

    run(main())


def test_one_that_begins_again_when_it_is_told_is_told_again() -> None:
    async def main() -> None:
        deadlines, done = Deadlines(late), asyncio.Event()

        class Again:
            times = 0

            def too_late(self) -> None:
                self.times += 1
                if self.times == 3:
                    done.set()
                else:
                    deadlines.add(self, 0.001)

        deadlines.add(Again(), 0.001)
        await done.wait()

    run(main())


def test_one_that_fails_at_being_told_keeps_nobody_else_from_it() -> None:
    async def main() -> None:
        deadlines, next_one = Deadlines(late), Waits()

        class Fails:
            def too_late(self) -> None:
                raise RuntimeError("no")

        failed: list[BaseException] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
        deadlines.add(Fails(), 0.001)
        deadlines.add(next_one, 0.001)
        await next_one.told.wait()
        with pytest.raises(RuntimeError, match="no"):
            raise failed[0]

    run(main())
