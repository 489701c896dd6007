"""Tasks with an owner: they are named, their failures are logged, and they end together."""

from __future__ import annotations

import asyncio

import pytest

from streams import run
from whip_core.tasks import TaskSet


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def test_a_task_has_its_name_and_is_kept_until_it_ends() -> None:
    async def main() -> None:
        tasks = TaskSet()
        release = asyncio.Event()
        task = tasks.spawn(release.wait(), "wait for it")
        assert (task.get_name(), len(tasks)) == ("wait for it", 1)
        release.set()
        assert await task is True
        await asyncio.sleep(0)
        assert len(tasks) == 0

    run(main())


def test_a_failure_is_logged_with_the_tasks_name(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("no good")

    async def main() -> None:
        tasks = TaskSet()
        task = tasks.spawn(fail(), "open 01234567")
        await asyncio.wait([task])
        await asyncio.sleep(0)

    run(main())
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == "open 01234567 failed: ValueError('no good')"


def test_a_task_that_is_cancelled_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        tasks = TaskSet()
        task = tasks.spawn(for_ever(), "for ever")
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert len(tasks) == 0

    run(main())
    assert caplog.records == []


def test_all_are_ended_together_and_waited_for() -> None:
    async def main() -> None:
        tasks = TaskSet()
        ended = []

        async def tidy_up(number: int) -> None:
            try:
                await for_ever()
            finally:
                await asyncio.sleep(0)
                ended.append(number)

        for number in range(3):
            tasks.spawn(tidy_up(number), f"task {number}")
        await asyncio.sleep(0)
        await tasks.cancel_all()
        assert (sorted(ended), len(tasks)) == ([0, 1, 2], 0)
        await tasks.cancel_all()

    run(main())


def test_a_task_that_is_begun_while_others_end_is_ended_too() -> None:
    async def main() -> None:
        tasks = TaskSet()

        async def begin_another() -> None:
            try:
                await for_ever()
            finally:
                tasks.spawn(for_ever(), "the last")

        tasks.spawn(begin_another(), "the first")
        await asyncio.sleep(0)
        await tasks.cancel_all()
        assert len(tasks) == 0

    run(main())


def test_a_task_that_fails_when_it_is_ended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        tasks = TaskSet()

        async def break_down() -> None:
            try:
                await for_ever()
            finally:
                raise ValueError("no good")

        tasks.spawn(break_down(), "broken")
        await asyncio.sleep(0)
        await tasks.cancel_all()
        await asyncio.sleep(0)

    run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "broken failed: ValueError('no good')"
    ]
