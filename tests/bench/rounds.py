"""Rounds: every contender once under a workload, one after the other, again and again."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import load, peers, whip
from bench.contender import Contender, Start
from bench.envoy import ENVOY, envoy
from bench.load import WORKLOADS
from bench.processes import DidNotWork, Missing
from bench.rows import Measured, Ratio, Row
from bench.spread import Spread, ratios
from bench.usage import Meter, resident_kb

WARM_UP = 1
"""Seconds of requests that do not count: parked connections are opened, code is warm."""
PAUSE = 0.3
"""Seconds between two samples, in which the connections of the first are taken down."""

STARTS: dict[str, Start] = {
    peers.DIRECT: peers.direct,
    whip.FORWARD: whip.forward,
    peers.SSH: peers.ssh,
    peers.SSH_FAST: peers.ssh_fast,
    peers.ASYNCSSH: peers.asyncssh,
    ENVOY: envoy,
    peers.MITMDUMP: peers.mitmdump,
    whip.STRAIGHT: whip.proxy,
    whip.PROXY: whip.proxy,
}


@dataclass
class Series:
    """One contender under one workload: a rate for each round, and what it cost in all."""

    contender: str
    workload: str
    rates: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    amount: float = 0.0
    errors: int = 0
    cpu_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    resident_kb: dict[str, float] = field(default_factory=dict)

    def add(self, done: load.Done, cpu: Mapping[str, float], memory: Mapping[str, float]) -> None:
        self.rates.append(done.rate)
        if done.p99_ms is not None:
            self.p99_ms.append(done.p99_ms)
        self.amount += done.amount
        self.errors += done.errors
        for name, seconds in cpu.items():
            self.cpu_seconds[name] += seconds
        self.resident_kb = {
            name: max(size, self.resident_kb.get(name, 0)) for name, size in memory.items()
        }

    @property
    def cost_unit(self) -> str:
        return "10,000 requests" if WORKLOADS[self.workload].connections else "GB"

    @property
    def cost(self) -> dict[str, float]:
        """CPU seconds of each process per `cost_unit`."""
        unit = 10_000 if WORKLOADS[self.workload].connections else 1
        return {name: cpu / self.amount * unit for name, cpu in self.cpu_seconds.items()}


@contextlib.contextmanager
def started(
    names: Sequence[str], folder: Path, service_port: int, missing: Callable[[str, str], None]
) -> Iterator[dict[str, Contender]]:
    """Start the contenders; `missing` is told of each that is not to be had, and why."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Contender] = {}
        for start in dict.fromkeys(STARTS[name] for name in names):
            try:
                contenders = stack.enter_context(start(folder, service_port))
            except (Missing, DidNotWork) as error:
                for name in names:
                    if STARTS[name] is start:
                        missing(name, str(error))
                continue
            found |= {contender.name: contender for contender in contenders}
        yield {name: found[name] for name in names if name in found}


def run(
    workload: str,
    contenders: Sequence[Contender],
    rounds: int,
    seconds: int,
    progress: Callable[[str], None],
    missing: Callable[[str, str], None],
) -> list[Series]:
    """One series for each contender; `missing` is told of one that fails, which is then out."""
    series = {contender.name: Series(contender.name, workload) for contender in contenders}
    alive = list(contenders)
    for number in range(0 if WORKLOADS[workload].connections else 1, rounds + 1):
        progress(f"{workload}: {f'round {number} of {rounds}' if number else 'warm-up'}")
        for contender in tuple(alive):
            try:
                sample = _sample(workload, contender, seconds if number else WARM_UP)
            except DidNotWork as error:
                missing(f"{contender.name}, {workload}", str(error))
                alive.remove(contender)
                continue
            if number:
                series[contender.name].add(*sample)
    return [one for one in series.values() if len(one.rates) == rounds]


def _sample(
    workload: str, contender: Contender, seconds: int
) -> tuple[load.Done, dict[str, float], dict[str, float]]:
    meter = Meter(contender.pids)
    done = load.run(WORKLOADS[workload], contender.place, seconds)
    cpu = meter.read()
    memory = {name: resident_kb(pid) for name, pid in contender.pids.items()}
    time.sleep(PAUSE)
    return done, cpu, memory


def compare(rows: Sequence[Row], series: Sequence[Series]) -> list[Measured]:
    """The ratios among the rows whose two sides have been measured."""
    rates = {(one.contender, one.workload): one.rates for one in series}
    measured = []
    for row in rows:
        if not isinstance(row, Ratio):
            continue
        ours = rates.get((row.ours, row.workload))
        base = rates.get((row.base, row.workload))
        if ours and base and (values := ratios(ours, base)):
            measured.append(Measured(row, Spread.of(values)))
    return measured
