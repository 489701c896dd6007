"""What processes use: CPU seconds, resident memory and descriptors, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") / 1024

# Fields of /proc/PID/stat, counted from behind the name in brackets.
PARENT, USER_TICKS, SYSTEM_TICKS, RESIDENT_PAGES = 1, 11, 12, 21


def _stat(pid: int) -> list[str] | None:
    """None if the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """The process and its descendants: sshd, for one, has a child for each connection."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children[int(stat[PARENT])].append(int(entry.name))
    found = [pid]
    for member in found:
        found += children[member]
    return found


def _sum(pid: int, fields: Iterable[int]) -> float:
    stats = [stat for member in tree(pid) if (stat := _stat(member))]
    return sum(float(stat[field]) for stat in stats for field in fields)


def cpu_seconds(pid: int) -> float:
    """User and system time of the process tree as it is now, to a hundredth of a second."""
    return _sum(pid, (USER_TICKS, SYSTEM_TICKS)) / TICKS


def resident_kb(pid: int) -> float:
    """Resident memory of the process tree. Pages that its members share count in each."""
    return _sum(pid, (RESIDENT_PAGES,)) * PAGE_KB


def descriptors(pid: int) -> int:
    """Open descriptors of the one process."""
    return sum(1 for _ in (PROC / str(pid) / "fd").iterdir())


class Meter:
    """The CPU seconds that some processes have used since it was made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._before = {name: cpu_seconds(pid) for name, pid in pids.items()}

    def read(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) - self._before[name] for name, pid in self._pids.items()}
