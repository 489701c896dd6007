"""The lines of our own processes' logs, at a third of what logging's own classes take.

A busy tunnel writes one for each stream at each end, so what no line shows is not found out
(paths, threads, the caller), and the time is put into words once a second.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

_EXCEPTIONS = logging.Formatter("%(message)s")


# What other handlers' formats may ask for; in the instance, where they look.
_UNKNOWN: dict[str, Any] = {
    **dict.fromkeys(("pathname", "filename", "module", "funcName"), "?"),
    **dict.fromkeys(("thread", "threadName", "process", "processName", "taskName"), None),
    "lineno": 0,
    "relativeCreated": 0.0,
}


class _Record(logging.LogRecord):
    """What a line shows, and nothing for the rest."""

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: Any,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **_: Any,
    ) -> None:
        if args and len(args) == 1 and isinstance(args[0], Mapping) and args[0]:
            args = args[0]  # as in logging: "%(name)s" with a mapping
        self.__dict__.update(_UNKNOWN)
        self.name, self.msg, self.args = name, msg, args
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.exc_info, self.exc_text, self.stack_info = exc_info, None, sinfo
        self.created = time.time()
        self.msecs = self.created * 1000 % 1000


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes `2026-11-22 16:29:41,103 INFO    what happened`."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._second = -1
        self._moment = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        if record.exc_info or record.exc_text or record.stack_info:
            text = _EXCEPTIONS.format(record)
        else:
            text = record.getMessage()
        return f"{self._moment},{int(record.msecs):03d} {record.levelname:7} {text}"

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except RecursionError:  # as in logging: nothing can be written about it
            raise
        except Exception:  # noqa: BLE001  # as in logging: it goes on without the line
            self.handleError(record)


def set_up(level: str) -> None:
    """Have this process log lines to its standard error, from `level` on."""
    # "Optimization" in Python's logging how-to.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.setLogRecordFactory(_Record)
    logging.basicConfig(level=level.upper(), handlers=[LineHandler(sys.stderr)])
