"""The real programs that tests talk to: where they are, and what a test does without one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

NEEDS_ROOT = "needs root"
NEEDS_NAMESPACES = "needs network namespaces, which are not allowed here"
NEEDS_REDIRECTS = "needs nftables in network namespaces, which is not allowed here"
NEEDS_ATHERIS = "needs atheris (make fuzz)"
"""Which has wheels for few Pythons; the corpus is run without it everywhere."""
SKIPS_ALLOWED_IN_CI = frozenset({NEEDS_ROOT, NEEDS_NAMESPACES, NEEDS_REDIRECTS, NEEDS_ATHERIS})
"""Reasons that a machine may have; every other skip in CI fails (see conftest)."""

SEARCHED = os.pathsep.join(
    (
        str(Path(sys.executable).parent),  # whip and mitmdump of the environment under test
        os.environ.get("PATH", os.defpath),
        "/usr/local/sbin:/usr/sbin:/sbin",  # nginx and sshd, which a user's PATH leaves out
    )
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason=NEEDS_ROOT)


def path_of(name: str) -> str:
    """The program's absolute path; raises `FileNotFoundError` where it is not installed."""
    found = shutil.which(name, path=SEARCHED)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


def needs_program(*names: str) -> pytest.MarkDecorator:
    """Skips a test, on a user's machine, while one of the programs is not installed."""
    missing = [name for name in names if shutil.which(name, path=SEARCHED) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
