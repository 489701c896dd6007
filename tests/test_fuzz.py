"""The corpus that fuzzing has left: each input still does what it may, also without atheris."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS
from programs import NEEDS_ATHERIS

pytestmark = pytest.mark.once

TESTS = Path(__file__).parent
CORPUS = TESTS / "fuzz" / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_that_is_kept_does_what_it_may(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_near_those_that_are_kept_do_too(name: str) -> None:
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]

    @settings(deadline=None)
    @given(st.sampled_from(kept), st.sampled_from(kept), st.data())
    def mutated(one: bytes, other: bytes, data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(one)))
        inserted = data.draw(st.binary(max_size=8))
        TARGETS[name](one[:cut] + inserted + other[data.draw(st.integers(0, len(other))) :])

    mutated()


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason=NEEDS_ATHERIS)
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_starts_and_finds_nothing_at_once(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        # What is new goes to the first folder.
        [
            *(sys.executable, "-m", "fuzz", name, "-runs=500"),
            f"-artifact_prefix={tmp_path}/",
            tmp_path,
        ],
        cwd=TESTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "DONE" in done.stderr
