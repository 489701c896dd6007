"""Many streams over few connections: each gets its own bytes, whatever happens to others."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    service,
    until,
)
from whip_core import Broker, parked_pool
from whip_core.relay import break_off

TARGET = ("instance1.testdom", 80)
STREAMS = 1_000
AT_ONCE = 20

Fate = Literal["ends", "aborts", "closes early", "is reset", "is cancelled", "is cut"]


@dataclass(frozen=True)
class Life:
    """One dial: how much goes each way, and how it comes to its end."""

    fate: Fate
    up: int
    down: int
    after: int
    """Octets read, or turns of the event loop taken, before that happens."""


sizes = st.one_of(st.integers(0, 20), st.integers(1_000, 70_000), st.just(300_000))
lives = st.builds(
    Life,
    st.sampled_from(
        ["ends", "ends", "aborts", "closes early", "is reset", "is cancelled", "is cut"]
    ),
    sizes,
    sizes,
    st.integers(0, 40),
)
rounds = st.lists(st.lists(lives, min_size=1, max_size=4), min_size=2, max_size=6)


def own(number: int, size: int) -> bytes:
    """Octets that say whose they are, everywhere."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


class StampedService:
    """Answers `number, size up, size down, fate` with octets of that number only."""

    def __init__(self) -> None:
        self.foreign: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            number, up, down, reset = map(int, (await reader.readline()).split())
            writer.write(own(number, down))
            received = await reader.read(1) if up else b""
            while reset == 0 and (more := await reader.read(65536)):
                received += more
            if received != own(number, up)[: len(received)]:
                self.foreign.append(f"{number} received what is not its own")
            if reset:
                break_off(writer.transport)
            else:
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the dial was broken off before it had said what it wants


async def live(broker: Broker, number: int, life: Life) -> None:
    """Live through one dial; an `AssertionError` if it gets what is not its own."""
    reader, writer = await broker.open_connection(*TARGET, wait=5)
    reset = int(life.fate == "is reset")
    received = b""
    try:
        writer.write(f"{number} {life.up} {life.down} {reset}\n".encode())
        writer.write(own(number, life.up))
        if life.fate == "aborts":
            received = await reader.read(min(life.after, life.down))
            writer.transport.abort()
            return
        if life.fate == "closes early":
            received = await reader.read(min(life.after, life.down))
            return
        writer.write_eof()
        while more := await reader.read(65536):
            received += more
        assert life.fate != "is reset", "a reset was read as an end"
        assert len(received) == life.down, "an end came before all had come"
    except ConnectionError:
        if life.fate != "is reset":
            raise
    finally:
        writer.close()
        assert received == own(number, life.down)[: len(received)]


@given(rounds)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_stream_ever_gets_an_octet_of_another(plan: list[list[Life]]) -> None:
    async def main() -> None:
        stamped, watch = StampedService(), Watch()
        loop = asyncio.get_running_loop()
        async with (
            service(stamped.serve) as port,
            Broker(broker_settings(tls=True), plugins=[watch]) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}", tls=client_files())),
        ):
            await watch.until(lambda: bool(watch.joined))
            number = 0
            for round_ in plan:
                tasks = []
                for life in round_:
                    number += 1
                    tasks.append((life, loop.create_task(live(broker, number, life))))
                for life, task in tasks:
                    if life.fate in ("is cancelled", "is cut"):
                        for _ in range(life.after):
                            await asyncio.sleep(0)
                    if life.fate == "is cancelled":
                        task.cancel()
                    elif life.fate == "is cut":
                        for stream in tuple(broker._dialer._streams)[:1]:
                            stream._carrier.transport.abort()  # type: ignore[attr-defined]
                cut = any(life.fate == "is cut" for life in round_)
                for life, task in tasks:
                    await asyncio.wait([task])
                    if not task.cancelled() and (error := task.exception()) is not None:
                        assert cut and isinstance(error, ConnectionError), (life, error)
            # Whatever has happened, the next one is served.
            await live(broker, number + 1, Life("ends", 5_000, 5_000, 0))
            assert stamped.foreign == []

    run(main())


def sockets() -> int:
    """Those that are open; gRPC's pollers come and go by themselves, and are none."""
    return sum(_leads_to(link).startswith("socket:") for link in Path("/proc/self/fd").iterdir())


def _leads_to(link: Path) -> str:
    with contextlib.suppress(FileNotFoundError):  # the one that lists them
        return str(link.readlink())
    return ""


def test_a_thousand_streams_leave_no_descriptor_and_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parked_pool, "WINDOW", 0.05)

    async def main() -> None:
        watch, rng = Watch(), random.Random(1)
        async with (
            service(echo) as port,
            Broker(broker_settings(tls=True), plugins=[watch]) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}", tls=client_files())),
        ):
            await watch.until(lambda: bool(watch.joined))
            await until(lambda: broker.agents[0].parked == 1)
            before, tasks = sockets(), len(asyncio.all_tasks())

            async def use(count: int) -> None:
                for _ in range(count):
                    streams = await broker.open_connection(*TARGET)
                    if rng.random() < 0.1:
                        streams[1].transport.abort()
                    else:
                        assert await exchange(streams, b"x" * 100) == b"x" * 100

            await asyncio.gather(*(use(STREAMS // AT_ONCE) for _ in range(AT_ONCE)))
            await watch.until(lambda: len(watch.closed) == STREAMS)
            # The pool shrinks to one, and the agent's last connections are closed with it.
            await until(lambda: broker.agents[0].parked == 1)
            await until(lambda: sockets() == before and len(asyncio.all_tasks()) == tasks)

    run(main())


def test_a_peer_that_does_not_read_costs_bounded_memory_and_holds_up_nobody() -> None:
    total, written = 256 << 20, 0

    async def main() -> None:
        async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            while written < total:
                writer.write(bytes(1 << 18))
                await writer.drain()
                written += 1 << 18

        watch = Watch()
        async with (
            service(endless) as port,
            service(echo) as echo_port,
            Broker(broker_settings(tls=True), plugins=[watch]) as broker,
            running(
                agent_settings(
                    broker.control_port, ports=f"80={port},81={echo_port}", tls=client_files()
                )
            ),
        ):
            await watch.until(lambda: bool(watch.joined))
            reader, writer = await broker.open_connection(*TARGET)
            stuck, last = 0, -1
            while stuck < 50:  # others are served all the while
                assert await exchange(await broker.open_connection(TARGET[0], 81), b"x") == b"x"
                stuck, last = (stuck + 1, last) if written == last else (0, written)
            # What the kernel's socket buffers take, three times, and little more.
            assert written < 64 << 20
            received = 0
            while data := await reader.read(1 << 20):
                received += len(data)
            assert received == total
            writer.close()

    run(main())
