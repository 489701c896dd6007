"""A program in a terminal of its own, as a person sits before it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from programs import path_of


class Terminal:
    """`seen` is everything that the program has written to it."""

    def __init__(self, process: asyncio.subprocess.Process, ours: int, theirs: int) -> None:
        self._process = process
        self._ours, self._theirs = ours, theirs
        self.seen = ""
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(ours, self._read)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self.seen += os.read(self._ours, 65536).decode(errors="replace")
        self._news.set()
        self._news = asyncio.Event()

    async def shows(self, text: str, *, after: int = 0) -> int:
        """Wait until `text` is written, behind the first `after` characters; where it ends."""
        while (found := self.seen.find(text, after)) < 0:
            await self._news.wait()
        return found + len(text)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        return await self._process.wait()

    def settings(self) -> list[object]:
        """How the terminal treats keys."""
        return termios.tcgetattr(self._theirs)


@asynccontextmanager
async def terminal(
    program: str,
    *arguments: str,
    lines: int = 24,
    columns: int = 100,
    env: Mapping[str, str] = {},
) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WHIP_") and name not in ("NO_COLOR", "LINES", "COLUMNS")
    }
    process = await asyncio.create_subprocess_exec(
        path_of(program),
        *arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", **env},
        start_new_session=True,
    )
    running = Terminal(process, ours, theirs)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)
