"""The rows of the table: what each compares, and how good it must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.envoy import ENVOY
from bench.peers import ASYNCSSH, DIRECT, MITMDUMP, SSH, SSH_FAST
from bench.spread import Spread
from bench.whip import FORWARD, PROXY, STRAIGHT


@dataclass(frozen=True, slots=True)
class Row:
    """`target` is the least that is good enough, or the most if `unit` is a cost."""

    name: str
    what: str
    unit: str
    target: float

    @property
    def at_least(self) -> bool:
        return self.unit == TIMES

    def met(self, value: float) -> bool:
        return value >= self.target if self.at_least else value <= self.target


@dataclass(frozen=True, slots=True)
class Ratio(Row):
    """The rate of `ours` over that of `base`, under one workload."""

    workload: str
    ours: str
    base: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out for a row; `note` says how, where the row cannot."""

    row: Row
    spread: Spread
    note: str = ""

    @property
    def met(self) -> bool:
        return self.row.met(self.spread.median)


TIMES, ROUND_TRIPS, MILLISECONDS = "x", "round trips", "ms"
KILOBYTES, MEGABYTES, CORES = "KB", "MB", "cores"


def _ratio(name: str, what: str, target: float, workload: str, ours: str, base: str) -> Ratio:
    return Ratio(name, what, TIMES, target, workload, ours, base)


RATIOS = (
    _ratio("proxy-keepalive", "mitmproxy + whip / mitmproxy straight, keep-alive, 32 connections",
           0.9, "keep-alive-32", PROXY, STRAIGHT),
    _ratio("proxy-keepalive-1", "the same, 1 connection",
           0.9, "keep-alive-1", PROXY, STRAIGHT),
    _ratio("proxy-new", "the same, a new connection for each request, 16 at once",
           0.8, "new-16", PROXY, STRAIGHT),
    _ratio("forward-1", f"{FORWARD} / {SSH_FAST}, keep-alive, 1 connection",
           0.8, "keep-alive-1", FORWARD, SSH_FAST),
    _ratio("forward-32-asyncssh", f"{FORWARD} / {ASYNCSSH}, keep-alive, 32 connections",
           1.8, "keep-alive-32", FORWARD, ASYNCSSH),
    _ratio("forward-32-ssh", f"{FORWARD} / {SSH_FAST}, keep-alive, 32 connections",
           0.6, "keep-alive-32", FORWARD, SSH_FAST),
    _ratio("forward-new", f"{FORWARD} / {SSH} -N, new connections, 16 at once",
           1.5, "new-16", FORWARD, SSH),
    _ratio("forward-bulk", f"{FORWARD} / {SSH_FAST}, bulk",
           1.0, "bulk", FORWARD, SSH_FAST),
)  # fmt: skip

DIAL_FAR = Row("dial-far", "a dial over mTLS on a link of 50 ms", ROUND_TRIPS, 1.1)
DIAL_NEAR = Row("dial-near", "a dial over mTLS on loopback, median", MILLISECONDS, 1.0)
PLUGINS = Row("plugins", "parked dials with no plugins / with 10 that have all hooks", TIMES, 0.95)
AGENTS = Row("agents", "a registered agent on a broker, none parked", KILOBYTES, 60)
AGENTS_PARKED = Row("agents-parked", "a registered agent on a broker, one parked", KILOBYTES, 100)
AGENTS_PING = Row("agents-ping", "pinging all of them every 20 s", CORES, 0.1)
IDLE_AGENT = Row("idle-agent", "an agent process, idle, resident", MEGABYTES, 60)
CONNECTION_AGENT = Row(
    "connection-agent", "an idle mTLS connection on the agent, with its service's", KILOBYTES, 40
)
CONNECTION_BROKER = Row(
    "connection-broker", "an idle mTLS connection on the broker, with its client's", KILOBYTES, 40
)
CONNECTION_PARKED = Row(
    "connection-parked", "a parked mTLS connection on the broker", KILOBYTES, 40
)
CONNECTION_MITMPROXY = Row(
    "connection-mitmproxy", "a parked mTLS connection inside mitmproxy", KILOBYTES, 40
)

ROWS: tuple[Row, ...] = (
    *RATIOS[:3],
    DIAL_FAR,
    DIAL_NEAR,
    PLUGINS,
    *RATIOS[3:],
    AGENTS,
    AGENTS_PARKED,
    AGENTS_PING,
    IDLE_AGENT,
    CONNECTION_AGENT,
    CONNECTION_BROKER,
    CONNECTION_PARKED,
    CONNECTION_MITMPROXY,
)

CONTENDERS = (DIRECT, FORWARD, SSH, SSH_FAST, ASYNCSSH, ENVOY, MITMDUMP, STRAIGHT, PROXY)
"""All that are measured under every workload, in the order of the table."""


def chosen(only: str) -> tuple[Row, ...]:
    """The rows whose names begin with one of the words in `only`; all if it has none.

    Raises `ValueError`, naming the rows, for a word that begins no name.
    """
    words = only.replace(",", " ").split()
    for word in words:
        if not any(row.name.startswith(word) for row in ROWS):
            names = ", ".join(row.name for row in ROWS)
            raise ValueError(f"there is no row {word}: the rows are {names}")
    return tuple(row for row in ROWS if not words or row.name.startswith(tuple(words)))


def needed(rows: Sequence[Row], everybody: bool) -> dict[str, tuple[str, ...]]:
    """Which contenders to measure under which workload: what the ratios need, or all."""
    ratios = [row for row in rows if isinstance(row, Ratio)]
    workloads = dict.fromkeys(row.workload for row in ratios)
    wanted = {
        workload: {
            name for row in ratios if row.workload == workload for name in (row.ours, row.base)
        }
        for workload in workloads
    }
    return {
        workload: tuple(name for name in CONTENDERS if everybody or name in wanted[workload])
        for workload in workloads
    }
