"""What many agents at several brokers cost: `python -m bench.scale --agents N --brokers B`,
from the folder of the tests.

Real brokers (`whip broker`, mTLS, joined by a NATS server if there are several), scripted
agents (`swarm`), dials through a dial socket. Prints one row of the table in docs/scaling.md,
and as JSON all that was measured. Everything runs on this machine and shares its cores, so the
times are upper bounds of what the brokers alone would take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from processes import Process, free_ports, started
from whip_core import connect
from whip_core.errors import DialError
from whip_core.remote import RemoteBroker
from whip_core.testing import Authority

HELD = 2
"""Brokers that each agent holds, of several."""
PER_PROCESS = 2500
REST = 20.0
"""Seconds over which CPU at rest is measured: one round of pings."""
DIALS = 300
AT_ONCE = 16
PATIENCE = 1800.0


def resident_kb(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class World:
    def __init__(self, folder: Path, stack: AsyncExitStack, count: int) -> None:
        self.stack = stack
        self.folder = folder
        self.authority = Authority(folder)
        self.server = self.authority.server_files(["localhost"], ["127.0.0.1"])
        self.client = self.authority.client_files("*.testdom")
        ports = free_ports(2 * count + 2)
        self.control = ports[:count]
        self.reverse = ports[count : 2 * count]
        self.nats_port, self.monitor_port = ports[-2:]
        self.brokers: list[Process] = []
        self.remotes: list[RemoteBroker] = []
        self.swarms: list[asyncio.subprocess.Process] = []

    @property
    def joined(self) -> bool:
        return len(self.control) > 1

    async def start_brokers(self) -> None:
        if self.joined:
            nats = await self.stack.enter_async_context(
                started("nats-server", "-p", f"{self.nats_port}", "-m", f"{self.monitor_port}")
            )
            await nats.says("Server is ready")
        for number in range(len(self.control)):
            self.brokers.append(await self.start_broker(number))
        for number in range(len(self.control)):
            self.remotes.append(
                await self.stack.enter_async_context(await connect(self.dial_address(number)))
            )

    def dial_address(self, number: int) -> str:
        return f"unix:{self.folder / f'{number}.sock'}"

    async def start_broker(self, number: int) -> Process:
        fabric = [f"--fabric=nats://127.0.0.1:{self.nats_port}"] if self.joined else []
        broker = await self.stack.enter_async_context(
            started(
                *("whip", "broker", "--metrics-listen=", "--log-level=warning", *fabric),
                "--whip-external-tcp-address=localhost",
                f"--whip-grpc-listen-port={self.control[number]}",
                f"--whip-tcp-listen-port={self.reverse[number]}",
                f"--dial-listen={self.dial_address(number)}",
                *(f"--tls-key-path={self.server.key}", f"--tls-cert-path={self.server.cert}"),
                f"--tls-ca-cert-path={self.server.ca}",
            )
        )
        while not (self.folder / f"{number}.sock").exists():
            await asyncio.sleep(0.05)
        return broker

    async def start_agents(self, count: int, held: int) -> None:
        files = map(str, (self.client.key, self.client.cert, self.client.ca))
        files = list(files)
        for first in range(0, count, PER_PROCESS):
            size = min(PER_PROCESS, count - first)
            swarm = await asyncio.create_subprocess_exec(
                *(sys.executable, str(Path(__file__).with_name("swarm.py"))),
                *map(str, (first, size, held)),
                *files,
                *map(str, self.control),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            self.swarms.append(swarm)

    async def live(self) -> int:
        total = 0
        for swarm in self.swarms:
            assert swarm.stdin is not None
            assert swarm.stdout is not None
            swarm.stdin.write(b"\n")
            total += int((await swarm.stdout.readline()).split()[1])
        return total

    async def until_live(self, wanted: int) -> float:
        began = time.monotonic()
        while await self.live() < wanted:
            if time.monotonic() - began > PATIENCE:
                raise SystemExit(f"only {await self.live()} of {wanted} registrations came")
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    async def stop_agents(self) -> None:
        for swarm in self.swarms:
            assert swarm.stdin is not None
            swarm.stdin.close()
            await swarm.wait()

    def nats_messages(self) -> int:
        url = f"http://127.0.0.1:{self.monitor_port}/varz"
        with urllib.request.urlopen(url) as answer:
            return int(json.load(answer)["in_msgs"])


async def dials(remote: RemoteBroker, names: list[str]) -> tuple[float, int]:
    """Dials a second, `AT_ONCE` at a time, and how many failed."""
    left, failed = list(names), 0

    async def work() -> None:
        nonlocal failed
        while left:
            try:
                reader, writer = await remote.open_connection(f"{left.pop()}.testdom", 80)
                assert await reader.read() == b"ok"
                writer.close()
                await writer.wait_closed()
            except DialError as error:
                failed += 1
                print(error, file=sys.stderr)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return len(names) / (time.monotonic() - began), failed


async def measure(folder: Path, agents: int, brokers: int) -> dict[str, Any]:
    held = min(HELD, brokers)
    found: dict[str, Any] = {"agents": agents, "brokers": brokers, "held": held}
    async with AsyncExitStack() as stack:
        world = World(folder, stack, brokers)
        await world.start_brokers()
        empty = sum(map(resident_kb, world.brokers))
        began = time.monotonic()
        await world.start_agents(agents, held)
        await world.until_live(agents * held)
        found["register_seconds"] = time.monotonic() - began
        await asyncio.sleep(3)
        full = sum(map(resident_kb, world.brokers))
        found["kb_per_registration"] = (full - empty) / (agents * held)
        before = sum(map(cpu_seconds, world.brokers))
        await asyncio.sleep(REST)
        cores = (sum(map(cpu_seconds, world.brokers)) - before) / REST
        found["cores_at_rest"] = cores
        sample = min(DIALS, agents)
        names = [f"agent{number}" for number in random.sample(range(agents), sample)]
        found["cold_dials_per_second"], found["cold_failures"] = await dials(
            world.remotes[0], names
        )
        found["warm_dials_per_second"], found["warm_failures"] = await dials(
            world.remotes[0], names * 3
        )
        if world.joined:
            # Held by the brokers 1 and 2, so that broker 0 has to ask.
            elsewhere = [f"agent{number}" for number in range(1, agents, brokers)]
            elsewhere = [name for name in elsewhere if name not in names][:sample]
            messages = world.nats_messages()
            await dials(world.remotes[0], elsewhere)
            found["fabric_messages_per_cold_dial"] = (world.nats_messages() - messages) / len(
                elsewhere
            )
            messages = world.nats_messages()
            await dials(world.remotes[0], elsewhere)
            found["fabric_messages_per_warm_dial"] = (world.nats_messages() - messages) / len(
                elsewhere
            )
        began = time.monotonic()
        world.brokers[-1].signal(9)
        await world.brokers[-1].ended()
        world.brokers[-1] = await world.start_broker(brokers - 1)
        while await world.live() >= agents * held and time.monotonic() - began < 5:
            await asyncio.sleep(0.05)  # until its agents have noticed
        await world.until_live(agents * held)
        found["recovery_seconds"] = time.monotonic() - began
        await world.stop_agents()
    return found


def row(found: dict[str, Any]) -> str:
    cold, warm = (
        f"{found[f'fabric_messages_per_{kind}_dial']:.1f}" if found["brokers"] > 1 else "-"
        for kind in ("cold", "warm")
    )
    return (
        f"| {found['agents']:,} at {found['held']} of {found['brokers']} "
        f"| {found['register_seconds']:.1f} s | {found['kb_per_registration']:.0f} KB "
        f"| {found['cores_at_rest']:.3f} | {found['recovery_seconds']:.1f} s "
        f"| {found['cold_dials_per_second']:.0f} / {found['warm_dials_per_second']:.0f} "
        f"| {cold} / {warm} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--brokers", type=int, default=1)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with TemporaryDirectory(prefix="whip-scale-") as folder:
        found = asyncio.run(measure(Path(folder), arguments.agents, arguments.brokers))
    print(json.dumps(found))
    print(row(found))


if __name__ == "__main__":
    main()
