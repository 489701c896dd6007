"""What our processes log: one line each, with its moment, and whatever logging can say."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

import pytest

from whip_core import log_lines

MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is written to standard error by a process that was set up; put back after it."""
    root, before = logging.getLogger(), logging.getLogRecordFactory()
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    log_lines.set_up("info")
    yield stream
    logging.setLogRecordFactory(before)


def test_a_line_has_its_moment_its_level_and_the_text(written: io.StringIO) -> None:
    logging.getLogger("a").info("%d of %s", 2, "three")
    logging.getLogger("b").warning("%(what)s", {"what": "a mapping"})
    logging.getLogger("b").debug("not this")
    first, second = written.getvalue().splitlines()
    assert re.fullmatch(MOMENT + r" INFO    2 of three", first)
    assert re.fullmatch(MOMENT + r" WARNING a mapping", second)


def test_the_moment_is_the_one_that_logging_would_write(written: io.StringIO) -> None:
    handler = log_lines.LineHandler(written)
    usual = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    for created in (0.0, 1.0625, 1_700_000_000.5, 1_700_000_000.75, 1_700_000_001.0):
        record = logging.makeLogRecord({"msg": "x", "levelname": "INFO"})
        record.created, record.msecs = created, created % 1 * 1000
        assert handler.format(record) == usual.format(record)


def test_an_exception_comes_with_its_traceback(written: io.StringIO) -> None:
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("a").exception("it failed")
    lines = written.getvalue().splitlines()
    assert re.fullmatch(MOMENT + " ERROR   it failed", lines[0])
    assert lines[1].startswith("Traceback") and lines[-1] == "ValueError: no"


def test_other_peoples_formats_still_work(written: io.StringIO) -> None:
    other = io.StringIO()
    handler = logging.StreamHandler(other)
    handler.setFormatter(
        logging.Formatter("%(name)s %(process)s %(threadName)s %(filename)s:%(lineno)d %(message)s")
    )
    logger = logging.getLogger("theirs")
    logger.addHandler(handler)
    try:
        logger.info("hello", extra={"more": 1})
    finally:
        logger.removeHandler(handler)
    assert other.getvalue() == "theirs None None ?:0 hello\n"


def test_a_line_that_cannot_be_written_hurts_nobody(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("a").info("%d", "no number")
    logging.getLogger("a").info("the next")
    assert written.getvalue().endswith("INFO    the next\n")
