"""Lines that strangers cause are bounded, and what was left out is said."""

from __future__ import annotations

import logging

import pytest

from whip_core.rare_log import LINES, WINDOW, RareLog


def test_lines_past_the_bound_are_counted_and_told_of_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    log = RareLog(logging.getLogger("test"), lambda: now)
    for number in range(LINES + 100):
        log.warning("line %d", number)
    assert len(caplog.records) == LINES
    now = WINDOW
    log.warning("again")
    assert [record.getMessage() for record in caplog.records[LINES:]] == [
        "100 more lines like these were left out",
        "again",
    ]
