"""A minute of soak: what `make soak` does for ten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.soak import GROWTH_MB, Use, descriptors_left, memory_left
from programs import needs_program

pytestmark = pytest.mark.once


@needs_program("nginx", "whip")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_under_a_steady_load_memory_and_descriptors_end_where_they_began() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--seconds", "60"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all came back" in done.stdout


def test_a_descriptor_that_stays_open_is_found() -> None:
    before = Use({"agent": 60.0}, {"agent": 20})
    assert descriptors_left(before, before) == []
    assert descriptors_left(before, Use({"agent": 60.0}, {"agent": 21})) == [
        "agent: 21 descriptors, 20 at the start"
    ]


def test_memory_that_stays_taken_is_found() -> None:
    before = Use({"agent": 60.0}, {"agent": 20})
    assert memory_left(before, Use({"agent": 60 + GROWTH_MB}, {"agent": 20})) == []
    assert memory_left(before, Use({"agent": 61 + GROWTH_MB}, {"agent": 20})) == [
        "agent: 69.0 MB, 60.0 MB when it was warm"
    ]
