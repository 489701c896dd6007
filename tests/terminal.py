"""A program in a terminal of its own, as a person sits before it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pyte

from programs import path_of

KEYS = {"enter": "\r", "escape": "\x1b", "tab": "\t"}


class Terminal:
    """`seen` is everything that the program has written; `screen` is what is to be seen now."""

    def __init__(self, process: asyncio.subprocess.Process, ours: int, theirs: int) -> None:
        self._process = process
        self._ours, self._theirs = ours, theirs
        self.seen = ""
        lines, columns = struct.unpack("HHHH", fcntl.ioctl(ours, termios.TIOCGWINSZ, bytes(8)))[:2]
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.Stream(self.screen)
        # A character may come in two reads.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(ours, self._read)

    def __str__(self) -> str:
        return "\n".join(["--- screen", *(line.rstrip() for line in self.screen.display), "---"])

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self._write(os.read(self._ours, 65536))
        self._news.set()
        self._news = asyncio.Event()

    def _write(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        self.seen += text
        self._stream.feed(text)

    async def shows(self, text: str, *, after: int = 0) -> int:
        """Wait until `text` is written, behind the first `after` characters; where it ends."""
        while (found := self.seen.find(text, after)) < 0:
            await self._news.wait()
        return found + len(text)

    async def displays(self, *texts: str, without: str | None = None) -> None:
        """Wait until all of `texts` are on the screen, and `without` is not."""
        while True:
            screen = str(self)
            if all(text in screen for text in texts) and (without is None or without not in screen):
                return
            await self._news.wait()

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def press(self, key: str) -> None:
        """A key that has a name."""
        self.type(KEYS[key])

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
    cwd: Path | None = None,
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
        # Whoever runs the tests may be killed: then the terminal hangs up, and its program ends.
        *(path_of("setsid"), "--ctty", path_of(program)),
        *arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env={**inherited, "TERM": "xterm-256color", **env},
    )
    running = Terminal(process, ours, theirs)
    try:
        yield running
    except BaseException:
        print(running)  # pytest shows it with what went wrong
        raise
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)
