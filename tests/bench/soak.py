"""A program: a steady load through `whip forward` and `whip client`, and what it leaves behind.

Memory and descriptors of both have to end where they began. The load is what a day brings
in small: kept connections, new ones, big bodies, readers that go away in the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import service, whip
from bench.contender import Contender
from bench.processes import DidNotWork
from bench.service import SMALL
from bench.usage import descriptors, resident_kb

BIG = 4_000_000
"""Octets of a big body: above every buffer on the way."""
WORKERS = 4
PACE = 0.02
"""Seconds between two jobs of a worker: steady, and far from what the machine can do."""
KEPT = 20
"""Requests on one kept connection."""
WARM_UP = 1 / 3
"""The part of the time after which memory is taken to have reached its level."""
GROWTH_MB = 8.0
"""What memory may differ at the end: the allocator's grain, and far below a leak of an hour."""
SETTLES_WITHIN = 90.0
"""Seconds for descriptors to be as before: parked connections go window by window."""
EVERY = 10.0
"""Seconds between two lines of the report."""


@dataclass
class Load:
    """What the workers have done so far."""

    port: int
    done: Counter[str] = field(default_factory=Counter)

    async def kept(self) -> None:
        """Many requests on one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for _ in range(KEPT):
                writer.write(_request("/small"))
                await _read(reader, SMALL)
        finally:
            writer.close()

    async def new(self) -> None:
        """One request on a connection that the service then ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(_request("/small", "Connection: close\r\n"))
            await _read(reader, SMALL)
            if await reader.read(1):
                raise DidNotWork("octets behind the end of an answer")
        finally:
            writer.close()

    async def big(self) -> None:
        """A big body, all of it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(_request("/big"))
            await _read(reader, BIG)
        finally:
            writer.close()

    async def gone(self) -> None:
        """A reader that goes away in the middle of a big body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(_request("/big"))
        await reader.readexactly(BIG // 10)
        writer.transport.abort()

    async def work(self, until: float) -> None:
        """Do one job after the other. Raises what goes wrong: nothing may."""
        jobs: tuple[Callable[[], Awaitable[None]], ...] = (self.kept, self.new, self.big, self.gone)
        number = 0
        while time.monotonic() < until:
            job = jobs[number % len(jobs)]
            await job()
            self.done[job.__name__] += 1
            number += 1
            await asyncio.sleep(PACE)


def _request(path: str, fields: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {whip.NAME}\r\n{fields}\r\n".encode()


async def _read(reader: asyncio.StreamReader, size: int) -> None:
    """Read one answer with a body of `size`, and drop it."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise DidNotWork(f"answered {head[:40]!r}")
    while size:
        piece = await reader.read(min(size, 1 << 16))
        if not piece:
            raise DidNotWork(f"a body ended {size} octets early")
        size -= len(piece)


@dataclass(frozen=True)
class Use:
    """Memory and descriptors, by process."""

    megabytes: dict[str, float]
    descriptors: dict[str, int]

    @classmethod
    def of(cls, contender: Contender) -> Use:
        return cls(
            {name: resident_kb(pid) / 1024 for name, pid in contender.pids.items()},
            {name: descriptors(pid) for name, pid in contender.pids.items()},
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {size:.1f} MB {self.descriptors[name]} fd"
            for name, size in self.megabytes.items()
        )


def descriptors_left(fresh: Use, end: Use) -> list[str]:
    """Which processes have more descriptors than before the load."""
    return [
        f"{name}: {end.descriptors[name]} descriptors, {before} at the start"
        for name, before in fresh.descriptors.items()
        if end.descriptors[name] > before
    ]


def memory_left(warm: Use, end: Use) -> list[str]:
    """Which processes have more memory than when the load had warmed them up."""
    return [
        f"{name}: {end.megabytes[name]:.1f} MB, {before:.1f} MB when it was warm"
        for name, before in warm.megabytes.items()
        if end.megabytes[name] > before + GROWTH_MB
    ]


async def _soak(contender: Contender, seconds: float) -> list[str]:
    load = Load(contender.place.port)
    began = time.monotonic()
    warm_at, end_at = began + seconds * WARM_UP, began + seconds
    fresh = Use.of(contender)
    print(f"start: {fresh}")

    async def watch() -> Use:
        warm = None
        while (now := time.monotonic()) < end_at:
            if warm is None and now >= warm_at:
                warm = Use.of(contender)
            print(f"{now - began:4.0f} s: {Use.of(contender)}; {dict(load.done)}", flush=True)
            await asyncio.sleep(min(EVERY, seconds * WARM_UP, end_at - now))
        return warm or Use.of(contender)

    async with asyncio.TaskGroup() as group:
        for number in range(WORKERS):
            group.create_task(load.work(end_at), name=f"worker {number}")
        watching = group.create_task(watch(), name="watch")
    warm = watching.result()
    end, settles_by = Use.of(contender), time.monotonic() + SETTLES_WITHIN
    while descriptors_left(fresh, end) and time.monotonic() < settles_by:
        await asyncio.sleep(1)
        end = Use.of(contender)
    print(f"end, {time.monotonic() - end_at:.0f} s after the load: {end}; {dict(load.done)}")
    return descriptors_left(fresh, end) + memory_left(warm, end)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="whip-soak-") as name:
        folder = Path(name)
        with (
            service.nginx(folder, BIG) as (_, port),
            whip.forward(folder, port) as (contender,),
        ):
            found = asyncio.run(_soak(contender, options.seconds))
    for leak in found:
        print(f"LEAK: {leak}")
    print("soak:", "memory or descriptors did not come back" if found else "all came back")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
