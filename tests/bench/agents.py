"""What many agents cost one broker: memory of each, and the CPU of pinging them all."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import whip
from bench.processes import DidNotWork, Program, running
from bench.rows import (
    AGENTS,
    AGENTS_PARKED,
    AGENTS_PING,
    CONNECTION_MITMPROXY,
    CONNECTION_PARKED,
    Measured,
)
from bench.spread import Spread
from bench.usage import Meter, resident_kb

PER_PROCESS = 2500
"""Agents in one process of the fleet: two descriptors each, and both cores have work."""
SPARE_DESCRIPTORS = 300
"""What a broker has open beside its agents."""
WARM_UP = 50
"""Agents that come first, so that code and buffers of the first ones do not count."""
SETTLE = 3.0
"""Seconds without a change before memory is read."""
IN_MITMPROXY = 1000
"""Agents parked inside mitmproxy."""


def descriptor_limit() -> int:
    """How many descriptors a process may have, raised as far as this user may raise it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Fleet:
    """Scripted agents at one broker."""

    def __init__(self, folder: Path, control_port: int, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._port = control_port
        self._stack = stack
        self._programs: list[tuple[Program, int]] = []
        self.count = 0
        self.parked = 0

    def register(self, count: int) -> None:
        """Have `count` more agents registered."""
        files = whip.agent_files(self._folder)
        started = []
        for first in range(self.count, self.count + count, PER_PROCESS):
            size = min(PER_PROCESS, self.count + count - first)
            arguments = (self._port, first, size, files.key, files.cert, files.ca)
            program = running(
                f"fleet-{self._port}-{first}",
                *(sys.executable, Path(__file__).with_name("fleet.py"), *map(str, arguments)),
                folder=self._folder,
                talks=True,
            )
            started.append((self._stack.enter_context(program), size))
        for program, size in started:
            _expect(program, program.answer(), f"registered {size}")
        self._programs += started
        self.count += count

    def park(self, count: int) -> int:
        """Have the first `count` agents park one connection each; gives how many are new."""
        left, before, self.parked = count, self.parked, count
        for program, size in self._programs:
            wanted = min(size, left)
            left -= wanted
            if wanted:
                _expect(program, program.ask(f"park {wanted}"), f"parked {wanted}")
        return count - before


def _expect(program: Program, answer: str, wanted: str) -> None:
    if answer != wanted:
        raise DidNotWork(f"{program.name}: {answer!r} instead of {wanted!r}: {program.log_tail()}")


@contextlib.contextmanager
def _fleet(folder: Path, kind: str) -> Iterator[tuple[whip.RunningBroker, Fleet]]:
    with whip.broker(folder, kind) as broker, contextlib.ExitStack() as stack:
        fleet = Fleet(folder, broker.control_port, stack)
        fleet.register(WARM_UP)
        fleet.park(WARM_UP // 2)
        yield broker, fleet


def _settled_kb(pid: int) -> float:
    time.sleep(SETTLE)
    return resident_kb(pid)


def _one(value: float) -> Spread:
    return Spread.of([value])


def on_broker(
    folder: Path, count: int, watch: int, progress: Callable[[str], None]
) -> Iterator[Measured]:
    """`count` agents on one `whip forward`: none parked, watched so long, one parked each."""
    room = descriptor_limit() - SPARE_DESCRIPTORS - WARM_UP
    count = min(count, room * 2 // 3)  # the rest is for their connections
    agents = f"{count:,} agents"
    with _fleet(folder, "forward") as (broker, fleet):
        pid = broker.program.pid
        start = _settled_kb(pid)
        progress(f"agents: registering {count:,}")
        fleet.register(count)
        none_parked = (_settled_kb(pid) - start) / count
        yield Measured(AGENTS, _one(none_parked), agents)
        progress(f"agents: watching {count:,} being pinged for {watch} s")
        meter, began = Meter({"broker": pid}), time.monotonic()
        time.sleep(watch)
        cores = meter.read()["broker"] / (time.monotonic() - began)
        yield Measured(AGENTS_PING, _one(cores), f"{agents}, gRPC's own keep-alive included")
        before = resident_kb(pid)
        progress("agents: parking a connection each")
        parked = fleet.park(min(fleet.count, room - count))
        one_parked = (_settled_kb(pid) - before) / parked
    connections = f"{parked:,} connections"
    if parked < count:
        connections += " (the limit of descriptors)"
    yield Measured(AGENTS_PARKED, _one(none_parked + one_parked), f"{agents}, {connections}")
    yield Measured(CONNECTION_PARKED, _one(one_parked), connections)


def in_mitmproxy(folder: Path, count: int, progress: Callable[[str], None]) -> Iterator[Measured]:
    """A connection parked by each of some agents at one `whip proxy`."""
    count = min(count, IN_MITMPROXY)
    with _fleet(folder, "proxy") as (broker, fleet):
        progress(f"connection-mitmproxy: parking {count:,}")
        fleet.register(count)
        before = _settled_kb(broker.program.pid)
        parked = fleet.park(fleet.count)
        each = (_settled_kb(broker.program.pid) - before) / parked
    yield Measured(CONNECTION_MITMPROXY, _one(each), f"{parked:,} connections")
