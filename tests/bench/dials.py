"""How long a dial takes: `Broker.open_connection` in this process, a real agent, mutual TLS."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench import whip
from bench.processes import DidNotWork, free_ports, listens, running, wait_until
from bench.rows import DIAL_FAR, DIAL_NEAR, Measured
from bench.spread import Spread
from whip_core import Broker, BrokerSettings, hookimpl
from whip_core.agents import DialFinished

ROUND_TRIP = 0.05
"""Seconds of the far link."""
FAR_DIALS = 5
NEAR_DIALS = 100
"""Dials in a round."""
PATIENCE = 30.0
"""Seconds to wait for an agent, or for a connection to be parked again."""


class _Watch:
    """A plugin that counts the dials for which no connection was parked."""

    def __init__(self) -> None:
        self.unparked = 0

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        self.unparked += not dial.parked


def near(folder: Path, service_port: int, rounds: int) -> Measured:
    return asyncio.run(_near(folder, service_port, rounds))


async def _near(folder: Path, service_port: int, rounds: int) -> Measured:
    control_port, reverse_port = free_ports(2)
    watch = _Watch()
    async with _broker(folder, control_port, reverse_port, reverse_port, watch) as broker:
        with whip.agent(folder, control_port, service_port):
            await _dials(broker, NEAR_DIALS)
            watch.unparked = 0
            medians = [
                statistics.median(await _dials(broker, NEAR_DIALS)) * 1000 for _ in range(rounds)
            ]
    return Measured(DIAL_NEAR, Spread.of(medians), _unparked(watch))


def far(folder: Path, service_port: int, rounds: int) -> Measured:
    return asyncio.run(_far(folder, service_port, rounds))


async def _far(folder: Path, service_port: int, rounds: int) -> Measured:
    """Dials and echoes over the same link in turn: a round trip is what an echo takes."""
    control_port, reverse_port, far_control_port, far_reverse_port, far_echo_port = free_ports(5)
    echo = await asyncio.start_server(_echo, "127.0.0.1", 0)
    echo_port = echo.sockets[0].getsockname()[1]
    watch = _Watch()
    link = (
        f"{far_control_port}:{control_port}",
        f"{far_reverse_port}:{reverse_port}",
        f"{far_echo_port}:{echo_port}",
    )
    script = Path(__file__).with_name("link.py")
    async with echo, _broker(folder, control_port, reverse_port, far_reverse_port, watch) as broker:
        with (
            running("link", sys.executable, script, str(ROUND_TRIP), *link, folder=folder) as relay,
            whip.agent(folder, far_control_port, service_port),
        ):
            await asyncio.to_thread(wait_until, lambda: listens(far_echo_port), "the link", relay)
            reader, writer = await asyncio.open_connection("127.0.0.1", far_echo_port)
            await _echoes(reader, writer, 2)
            await _dials(broker, 2)
            watch.unparked = 0
            dials, echoes = [], []
            for _ in range(rounds):
                dials.append(statistics.median(await _dials(broker, FAR_DIALS)))
                echoes.append(statistics.median(await _echoes(reader, writer, FAR_DIALS)))
            writer.close()
    multiples = [dial / round_trip for dial, round_trip in zip(dials, echoes, strict=True)]
    note = (
        f"{statistics.median(dials) * 1000:.1f} ms, an echo {statistics.median(echoes) * 1000:.1f} ms"
        f"{_unparked(watch)}"
    )
    return Measured(DIAL_FAR, Spread.of(multiples), note)


def _unparked(watch: _Watch) -> str:
    return f"; {watch.unparked} dials found none parked" if watch.unparked else ""


@asynccontextmanager
async def _broker(
    folder: Path, control_port: int, reverse_port: int, external_port: int, watch: _Watch
) -> AsyncIterator[Broker]:
    settings = BrokerSettings(
        external_host="localhost",
        external_port=external_port,
        listen_host="127.0.0.1",
        grpc_listen_port=control_port,
        tcp_listen_port=reverse_port,
        tls=whip.broker_files(folder),
    )
    async with Broker(settings, plugins=[watch]) as broker:
        yield broker


async def _dials(broker: Broker, count: int) -> list[float]:
    """Seconds of each dial, one after the other, each when a connection is parked again."""
    seconds = []
    for _ in range(count):
        await _until(lambda: any(agent.parked for agent in broker.agents))
        started = time.perf_counter()
        _, writer = await broker.open_connection(whip.NAME, whip.PORT)
        seconds.append(time.perf_counter() - started)
        writer.close()
        await writer.wait_closed()
    return seconds


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise DidNotWork(f"no connection was parked within {PATIENCE:g} s")
        await asyncio.sleep(0.002)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1):
        writer.write(data)
    writer.close()


async def _echoes(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        writer.write(b".")
        await reader.readexactly(1)
        seconds.append(time.perf_counter() - started)
    return seconds
