"""How long a dial takes: `Broker.open_connection` in this process, a real agent, mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import rows, whip
from bench.everything import Everything
from bench.processes import DidNotWork, free_ports, listens, running, wait_until
from bench.rows import DIAL_FAR, DIAL_NEAR, Measured
from bench.spread import Spread
from whip_core import Broker, BrokerSettings

ROUND_TRIP = 0.05
"""Seconds of the far link."""
FAR_DIALS = 5
NEAR_DIALS = 100
"""Dials in a round."""
PLUGINS = 10
PAIRS = 300
"""Dials in a round, of each of the two: what is looked for is smaller than their noise."""
PATIENCE = 30.0
"""Seconds to wait for an agent, or for a connection to be parked again."""


def near(folder: Path, service_port: int, rounds: int) -> Measured:
    control_port, reverse_port = free_ports(2)
    broker = _broker(folder, control_port, reverse_port, reverse_port)
    with whip.agent(folder, control_port, service_port):
        return asyncio.run(_near(broker, rounds))


async def _near(broker: Broker, rounds: int) -> Measured:
    async with broker:
        await _dials(broker, NEAR_DIALS)
        medians = [
            statistics.median(await _dials(broker, NEAR_DIALS)) * 1000 for _ in range(rounds)
        ]
    return Measured(DIAL_NEAR, Spread.of(medians))


def plugins(folder: Path, service_port: int, rounds: int) -> Measured:
    """Dials through a broker without plugins, and through one with some, in turn."""
    with contextlib.ExitStack() as stack:
        brokers = []
        for number in (0, PLUGINS):
            control_port, reverse_port = free_ports(2)
            registered = [Everything() for _ in range(number)]
            brokers.append(_broker(folder, control_port, reverse_port, reverse_port, registered))
            stack.enter_context(whip.agent(folder, control_port, service_port))
        return asyncio.run(_plugins(*brokers, rounds))


async def _plugins(without: Broker, with_them: Broker, rounds: int) -> Measured:
    values, seconds = [], (0.0, 0.0)
    async with without, with_them:
        await _dials(without, NEAR_DIALS)
        await _dials(with_them, NEAR_DIALS)
        for number in range(rounds):
            bare: list[float] = []
            loaded: list[float] = []
            for pair in range(PAIRS):
                # Whoever is second finds warm caches, so they take turns.
                turns = [(without, bare), (with_them, loaded)]
                for broker, found in turns if (number + pair) % 2 else reversed(turns):
                    found += await _dials(broker, 1)
            seconds = (statistics.median(bare), statistics.median(loaded))
            values.append(seconds[0] / seconds[1])
    note = "{:.0f} µs, with them {:.0f} µs".format(*(1e6 * each for each in seconds))
    return Measured(rows.PLUGINS, Spread.of(values), note)


def far(folder: Path, service_port: int, rounds: int) -> Measured:
    control_port, reverse_port, echo_port, *far_ports = free_ports(6)
    far_control_port, far_reverse_port, far_echo_port = far_ports
    broker = _broker(folder, control_port, reverse_port, far_reverse_port)
    script = Path(__file__).with_name("link.py")
    ways = (
        f"{far_control_port}:{control_port}",
        f"{far_reverse_port}:{reverse_port}",
        f"{far_echo_port}:{echo_port}",
    )
    with (
        running("link", sys.executable, script, str(ROUND_TRIP), *ways, folder=folder) as link,
        whip.agent(folder, far_control_port, service_port),
    ):
        wait_until(lambda: listens(far_echo_port), "the link listens", link)
        return asyncio.run(_far(broker, echo_port, far_echo_port, rounds))


async def _far(broker: Broker, echo_port: int, far_echo_port: int, rounds: int) -> Measured:
    """Dials and echoes over the same link in turn: a round trip is what an echo takes."""
    dials, echoes = [], []
    async with await asyncio.start_server(_echo, "127.0.0.1", echo_port), broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", far_echo_port)
        await _echoes(reader, writer, 2)
        await _dials(broker, 2)
        for _ in range(rounds):
            dials.append(statistics.median(await _dials(broker, FAR_DIALS)))
            echoes.append(statistics.median(await _echoes(reader, writer, FAR_DIALS)))
        writer.close()
        await writer.wait_closed()
    multiples = [dial / round_trip for dial, round_trip in zip(dials, echoes, strict=True)]
    dial, round_trip = statistics.median(dials) * 1000, statistics.median(echoes) * 1000
    return Measured(
        DIAL_FAR, Spread.of(multiples), f"{dial:.1f} ms, where an echo takes {round_trip:.1f} ms"
    )


def _broker(
    folder: Path,
    control_port: int,
    reverse_port: int,
    external_port: int,
    plugins: Sequence[object] = (),
) -> Broker:
    settings = BrokerSettings(
        external_host="localhost",
        external_port=external_port,
        listen_host="127.0.0.1",
        grpc_listen_port=control_port,
        tcp_listen_port=reverse_port,
        tls=whip.broker_files(folder),
    )
    return Broker(settings, plugins=plugins)


async def _dials(broker: Broker, count: int) -> list[float]:
    """Seconds of each dial, one after the other, each when a connection is parked again."""
    seconds = []
    for _ in range(count):
        await _until(lambda: any(agent.parked for agent in broker.agents))
        started = time.perf_counter()
        _, writer = await broker.open_connection(whip.NAME, whip.PORT)
        seconds.append(time.perf_counter() - started)
        if not writer.get_extra_info("whip").parked:
            raise DidNotWork("a dial found no connection parked")
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
