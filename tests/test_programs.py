"""A test that cannot run where it is: skipped on a user's machine, failed in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from programs import NEEDS_ROOT, needs_program, path_of

SKIPPING = {
    "a test": "@needs_program('no-such-program')\ndef test_it(): ...",
    "a test, from inside": "def test_it(): pytest.skip('not today')",
    "a file": "pytest.importorskip('no_such_module')\ndef test_it(): ...",
}


def _exit_status(folder: Path, test: str, ci: str) -> int:
    here = Path(__file__).parent
    for name in ("conftest.py", "programs.py"):
        (folder / name).write_text((here / name).read_text())
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(
        f"import pytest\nfrom programs import needs_program\n\n{test}\n\ndef test_other(): ...\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    env = {**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True).returncode


@pytest.mark.parametrize("test", SKIPPING.values(), ids=SKIPPING)
def test_a_skip_passes_on_a_users_machine_and_fails_in_ci(tmp_path: Path, test: str) -> None:
    assert _exit_status(tmp_path, test, ci="") in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,  # the file was all there is
    )
    assert _exit_status(tmp_path, test, ci="true") in (
        pytest.ExitCode.TESTS_FAILED,
        pytest.ExitCode.INTERRUPTED,
    )


def test_a_reason_that_a_ci_machine_may_have_is_no_failure(tmp_path: Path) -> None:
    test = f"def test_it(): pytest.skip({NEEDS_ROOT!r})"
    assert _exit_status(tmp_path, test, ci="true") == pytest.ExitCode.OK


def test_a_program_that_is_there_is_found_and_skips_nothing() -> None:
    assert Path(path_of("whip")).parent == Path(sys.executable).parent
    assert needs_program("sh").args == (False,)


def test_a_program_that_is_missing_is_named() -> None:
    mark = needs_program("sh", "no-such-program")
    assert (mark.args, mark.kwargs) == ((True,), {"reason": "not installed: no-such-program"})
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        path_of("no-such-program")
