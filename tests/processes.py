"""Real programs as the other side of a test: started, listened to line by line, ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from programs import path_of
from whip_core.stop_signals import ONE_WISH

NEVER_GIVEN_AWAY = (10_000, 32_768)
"""Ports below the range that Linux takes those of outgoing connections from."""
END_TIMEOUT = 10.0
"""Seconds that a program has to end after SIGTERM, before it is killed."""


class Process:
    """A program that runs. `lines` is what it has printed, on both outputs."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    def __str__(self) -> str:
        return "\n".join([f"--- {self._name}", *self.lines, "---"])

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip("\n"))
            self._news.set()
            self._news = asyncio.Event()

    async def says(self, text: str) -> str:
        """Wait for a line with `text`; an `AssertionError` if the program ends without it."""
        seen = 0
        while True:
            for line in self.lines[seen:]:
                if text in line:
                    return line
            seen = len(self.lines)
            if self._reading.done():
                raise AssertionError(f"{self._name} ended and never said {text!r}:\n{self}")
            waiting = asyncio.get_running_loop().create_task(self._news.wait())
            try:
                await asyncio.wait([self._reading, waiting], return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()

    async def says_often(self, text: str, times: int) -> None:
        """Wait for so many lines with `text`."""
        while sum(text in line for line in self.lines) < times:
            assert not self._reading.done(), f"{self._name} ended:\n{self}"
            waiting = asyncio.get_running_loop().create_task(self._news.wait())
            await asyncio.wait([self._reading, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()

    def signal(self, number: int) -> None:
        """Send a signal to the program itself, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def insisted(self) -> int:
        """A second SIGTERM, as late as it has to be to count as one; the exit status."""
        await asyncio.sleep(ONE_WISH)
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end and for its last line; the exit status."""
        status = await self._process.wait()
        await self._reading
        return status

    async def end(self) -> int:
        """End it as an operator would, and its children in any case."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return await self.ended()

    def peak_memory(self) -> int:
        """The most memory it has had so far, in octets (Linux)."""
        return peak_memory(self.pid)


@asynccontextmanager
async def started(
    program: str, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] = {}
) -> AsyncIterator[Process]:
    """A program with a process group of its own, ended behind the block.

    `env` comes on top of ours, from which nothing that means something to whip is taken.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WHIP_")}
    process = await asyncio.create_subprocess_exec(
        path_of(program),
        *map(str, arguments),
        cwd=cwd,
        env={**inherited, "PYTHONUNBUFFERED": "1", **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
        start_new_session=True,
    )
    running = Process(process, program)
    try:
        yield running
    except BaseException:
        await running.end()
        print(running)  # pytest shows it with what went wrong
        raise
    else:
        await running.end()


async def output_of(program: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a program to its end, which has to be a success; what it printed."""
    async with started(program, *arguments, cwd=cwd) as process:
        assert await process.ended() == 0, str(process)
    return "\n".join(process.lines)


def peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, in both families.

    From below those that the system gives to outgoing connections, so that none of these
    takes one before the program does that it is meant for.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(*NEVER_GIVEN_AWAY)
        if port not in ports and is_free(port):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Whether nobody listens there on loopback, in either family."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as sock:
                sock.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    return True
