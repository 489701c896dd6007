"""What a control stream costs a server that does nothing else: `python -m bench.floor`, from
the folder of the tests.

A bare grpc.aio server takes one bidirectional call on each connection, reads one message, answers
it and waits for the next. That is why the broker's own server stands on h2 instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import whip
from bench.processes import Program, running
from bench.usage import resident_kb
from whip_core.settings import TLSFiles

KINDS = {
    "clear": "in the clear",
    "tls": "over mTLS",
    "lean": "over mTLS, with its options for little memory",
}
WARM_UP = 50
SETTLE = 3.0
"""Seconds without a change before memory is read."""


def kilobytes(kind: str, folder: Path, count: int) -> float:
    """What each of `count` connections adds to the server's resident memory."""

    def program(role: str, files: TLSFiles, *more: object) -> Program:
        paths = (files.key, files.cert, files.ca)
        command = (sys.executable, Path(__file__).with_name("bare.py"), role, kind, *paths, *more)
        return stack.enter_context(
            running(f"{role}-{kind}", *map(str, command), folder=folder, talks=True)
        )

    with ExitStack() as stack:
        server = program("serve", whip.broker_files(folder))
        caller = program("call", whip.agent_files(folder), server.answer())
        caller.ask(f"{WARM_UP}")
        time.sleep(SETTLE)
        before = resident_kb(server.pid)
        caller.ask(f"{count}")
        time.sleep(SETTLE)
        return (resident_kb(server.pid) - before) / count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description=__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="whip-floor-") as name:
        for kind, what in KINDS.items():
            each = kilobytes(kind, Path(name), options.agents)
            print(f"{each:5.1f} KB  a control stream of a bare grpc.aio server, {what}")


if __name__ == "__main__":
    main()
