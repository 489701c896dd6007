"""Each threat of docs/threat-model.md names the tests that show what happens, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "threat-model.md"


def test_every_threat_has_tests_and_each_of_them_exists() -> None:
    _, table = PAGE.read_text().split("## What is checked where")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    for row in rows[1:]:
        shown = re.findall(r"`(test_\w+)`", row.rstrip("| ").rpartition(" | ")[2])
        assert shown, f"no test shows: {row}"
        for name in shown:
            assert (TESTS / f"{name}.py").is_file(), f"{name} is not a file of tests: {row}"
