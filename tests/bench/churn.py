"""A program: agents that come and go, 50 streams a second, and a fault every few seconds.

Not one octet may be wrong, and when it is over everything is given back. Each fault is
chosen at random; `--seed` brings the same ones again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from faulty import Tunnel, no_more_descriptors, tunnel

AGENTS = ("one", "two", "three")
STREAMS_PER_SECOND = 50.0
WORKERS = 30
"""Enough for the rate while some of them wait for what is broken."""
SIZES = (100, 5_000, 150_000)
"""Octets: mostly what requests are, and some above a frame's buffers; 5 MB a second in all."""
BETWEEN = (1.0, 4.0)
"""Seconds without a new fault."""
HOLDS = (0.2, 7.0)
"""Seconds that something is silent or stopped: less and more than a dead path is believed."""
EVERY = 10.0
"""Seconds between two lines of the report."""


class Churn:
    """Breaks a tunnel, and repairs each time what it broke."""

    def __init__(self, there: Tunnel, seed: int) -> None:
        self._there = there
        self._chance = random.Random(seed)
        self.done: Counter[str] = Counter()

    async def run_until(self, end: float) -> None:
        faults: tuple[Callable[[], Awaitable[None]], ...] = (
            *(self.agent_leaves, self.agent_is_killed, self.agent_is_stopped),
            *(self.broker_is_killed, self.broker_is_stopped),
            *(self.link_is_silent, self.link_is_reset, self.descriptors_run_out),
        )
        while time.monotonic() < end:
            fault = self._chance.choice(faults)
            await fault()
            self.done[fault.__name__] += 1
            await asyncio.sleep(self._chance.uniform(*BETWEEN))

    async def agent_leaves(self) -> None:
        name = self._agent()
        self._there.processes[name].signal(signal.SIGTERM)
        await self._there.processes[name].ended()
        await self._there.start(name)

    async def agent_is_killed(self) -> None:
        name = self._agent()
        await self._there.kill(name)
        await self._there.start(name)

    async def agent_is_stopped(self) -> None:
        await self._stopped(self._agent())

    async def broker_is_killed(self) -> None:
        await self._there.kill("broker")
        await self._there.start("broker")

    async def broker_is_stopped(self) -> None:
        await self._stopped("broker")

    async def link_is_silent(self) -> None:
        link = self._chance.choice(self._there.links)
        link.silence()
        await self._hold()
        link.heal()
        link.reset()

    async def link_is_reset(self) -> None:
        self._chance.choice(self._there.links).reset()

    async def descriptors_run_out(self) -> None:
        name = self._chance.choice((*AGENTS, "broker"))
        with no_more_descriptors(self._there.processes[name].pid):
            await self._hold()

    def _agent(self) -> str:
        return self._chance.choice(AGENTS)

    async def _stopped(self, name: str) -> None:
        process = self._there.processes[name]
        process.signal(signal.SIGSTOP)
        await self._hold()
        process.signal(signal.SIGCONT)

    async def _hold(self) -> None:
        await asyncio.sleep(self._chance.uniform(*HOLDS))


async def churn(seconds: float, seed: int) -> None:
    """Raises `AssertionError` when an octet was wrong, or something is not given back."""
    async with tunnel(agents=AGENTS) as there:
        load = there.load
        load.set(STREAMS_PER_SECOND, WORKERS, SIZES)
        churning = Churn(there, seed)
        began = time.monotonic()

        async def report() -> None:
            while True:
                await asyncio.sleep(EVERY)
                print(f"{time.monotonic() - began:4.0f} s: {load}", flush=True)

        async with there.broken(), asyncio.TaskGroup() as group:
            reporting = group.create_task(report(), name="report")
            await churning.run_until(began + seconds)
            reporting.cancel()
        print(f"churn: {dict(churning.done)}; {load}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make churn", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    options = parser.parse_args()
    print(f"churn: {options.seconds:g} s, seed {options.seed}", flush=True)
    try:
        asyncio.run(churn(options.seconds, options.seed))
    except AssertionError as error:
        print(f"churn: FAILED: {error}")
        return 1
    print("churn: no octet was wrong and all came back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
