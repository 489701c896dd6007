"""`docs/plugins.md` is right: every hook is in it with its arguments, and all of it runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from whip_core.hookspecs import HOOKS

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs" / "plugins.md"
HEADING = re.compile(r"^### (whip_\w+)\((.*)\)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n# ([\w]+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

FILES = dict(BLOCK.findall(DOCS.read_text()))
HERE = Path(__file__).name


def test_every_hook_is_documented_with_its_arguments_and_no_other_is() -> None:
    documented = {
        name: tuple(arguments.split(", ")) if arguments else ()
        for name, arguments in HEADING.findall(DOCS.read_text())
    }
    assert documented == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_an_example_and_the_example_a_test(hook: str) -> None:
    examples = [name for name, source in FILES.items() if f"def {hook}(" in source]
    assert examples, f"no example in {DOCS.name} implements {hook}"
    assert any(f"test_{name}" in FILES for name in examples)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_of_ours(hook: str) -> None:
    implements = re.compile(rf"def {hook}\(|\b{hook}=|\"{hook}\"")
    found = [
        path.name
        for path in TESTS.glob("*.py")
        if path.name != HERE and implements.search(path.read_text())
    ]
    assert found, f"no test has a plugin with {hook}"


def test_all_examples_pass_their_tests(tmp_path: Path) -> None:
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "."],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests = sum(len(re.findall("^def test_", source, re.MULTILINE)) for source in FILES.values())
    assert f"{tests} passed" in done.stdout
