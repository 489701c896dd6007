"""What a command is waiting for, said to a person who would otherwise see nothing happen.

A line on a terminal's standard error that the next one replaces, and that is gone at the end;
elsewhere (a file, a pipe, CI) nothing at all.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ERASE = "\r\x1b[K"


def say(text: str) -> None:
    """In the place of what was said before; "" for nothing. Names in it may be anybody's."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return
    shown = "".join(c if c.isprintable() else "?" for c in text)
    width = shutil.get_terminal_size().columns
    # A line that wraps would stay.
    sys.stderr.write(ERASE + shown[: width - 1])
    sys.stderr.flush()


@contextmanager
def doing(text: str) -> Iterator[None]:
    """Say it until the end of the block."""
    say(text)
    try:
        yield
    finally:
        say("")
