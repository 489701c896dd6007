"""A short churn: what `make churn` does for ten minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.long]

SECONDS = 60
SEED = 4
"""Faults of several kinds in that time; another seed is another choice of them."""


@pytest.mark.timeout(240)
def test_agents_that_come_and_go_and_faults_every_few_seconds_make_no_octet_wrong() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.churn", f"--seconds={SECONDS}", f"--seed={SEED}"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no octet was wrong and all came back" in done.stdout
