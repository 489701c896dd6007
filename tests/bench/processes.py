"""Programs of the bench: found, started, waited for, and always stopped."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

STARTS_WITHIN = 60.0
"""Seconds for a program to be ready: on a busy machine mitmproxy alone takes ten."""
STOPS_WITHIN = 10.0
POLL = 0.02
ANSWERS_WITHIN = 300.0
"""Seconds for a program to answer: the handshakes of thousands of agents lie in between."""
LOG_TAIL = 600
"""Characters of a program's log that an error shows."""
SEARCHED = os.pathsep.join(
    (
        str(Path(sys.executable).parent),  # whip and mitmdump of the environment under test
        os.environ.get("PATH", os.defpath),
        "/usr/local/sbin:/usr/sbin:/sbin",  # nginx and sshd, which a user's PATH leaves out
    )
)


class Missing(Exception):
    """Something that a contender needs is not on this machine; the text is one line."""


class DidNotWork(Exception):
    """A program ended, or did not do what it is there for; the text has the end of its log."""


def find(program: str) -> str:
    """The program's absolute path. Raises `Missing`."""
    found = shutil.which(program, path=SEARCHED)
    if found is None:
        raise Missing(f"{program} is not installed")
    return found


@dataclass
class Program:
    """A program that runs. `pid` is the root of its process tree."""

    name: str
    popen: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL:].strip()

    def ask(self, line: str) -> str:
        """Write a line to its standard input and read one from its standard output."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """The next line of its standard output. Raises `DidNotWork` if none will come."""
        assert self.popen.stdout is not None
        if not select.select([self.popen.stdout], [], [], ANSWERS_WITHIN)[0]:
            raise DidNotWork(f"{self.name}: no answer in {ANSWERS_WITHIN:g} s: {self.log_tail()}")
        line = self.popen.stdout.readline()
        if not line:
            raise DidNotWork(f"{self.name} has ended: {self.log_tail()}")
        return line.strip()


@contextlib.contextmanager
def running(
    name: str, *command: str | Path, folder: Path, talks: bool = False
) -> Iterator[Program]:
    """Run a program in `folder` while the block runs; its output goes to a log there.

    With `talks`, its standard output is for `Program.ask`.
    """
    log = folder / f"{name}.log"
    with log.open("w") as output:
        popen = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdin=subprocess.PIPE,  # kept open: a terminal's end is the end of `ssh -tt`
            stdout=subprocess.PIPE if talks else output,
            stderr=output,
            text=True,
            start_new_session=True,  # Ctrl-C is ours: everything is stopped in order
        )
    try:
        yield Program(name, popen, log)
    finally:
        popen.terminate()
        try:
            popen.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def wait_until(
    ready: Callable[[], bool], what: str, *programs: Program, within: float = STARTS_WITHIN
) -> None:
    """Wait for a condition. Raises `DidNotWork` if a program ends first, or time is up."""
    deadline = time.monotonic() + within
    while not ready():
        for program in programs:
            if program.popen.poll() is not None:
                raise DidNotWork(f"{program.name} has ended: {program.log_tail()}")
        if time.monotonic() > deadline:
            logs = "; ".join(f"{program.name}: {program.log_tail()}" for program in programs)
            raise DidNotWork(f"{what}: not within {within:g} s; {logs}")
        time.sleep(POLL)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
