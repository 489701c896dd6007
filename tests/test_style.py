"""What STYLE.md says that a machine can count."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("whip_core", "client_agent", "whip_addon", "tests", "recipes", "proto", "docs", ".ci")
FILES = [
    path
    for path in chain(ROOT.iterdir(), *((ROOT / name).rglob("*") for name in SOURCES))
    if path.is_file() and path.suffix in {"", ".md", ".proto", ".py", ".sh", ".toml", ".yaml"}
]
INITS = sorted(path for path in FILES if path.name == "__init__.py")
MARK = re.compile("[T]ODO|[F]IXME")  # written so that this file has none
NO_IDEA = {"common.py", "helpers.py", "misc.py", "util.py", "utils.py"}


@pytest.mark.parametrize("path", INITS, ids=lambda path: path.parent.name)
def test_a_package_starts_with_a_glossary(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} does not say what the package is"
    assert len(text.splitlines()) < 25
    if any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body):
        assert "__all__" in text, f"{path} does not say which of its names are for others"


def test_a_file_is_named_for_its_idea() -> None:
    assert [path for path in FILES if path.name in NO_IDEA] == []


def test_nothing_is_left_for_later() -> None:
    left = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MARK.search(line)
    ]
    assert not left, "\n".join(left)
