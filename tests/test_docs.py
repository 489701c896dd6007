"""What the docs say is so: commands parse, programs compile, names exist, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
from pathlib import Path
from types import ModuleType

import click
import pytest

from command_lines import in_shell, parse
from programs import needs_program, path_of
from whip_addon.facts import MEANINGS
from whip_addon.internal import HOST
from whip_addon.prompt import Prompt
from whip_addon.settings import OPTIONS
from whip_core import hookspecs
from whip_core.cli import main
from whip_core.metrics import AgentMetrics, BrokerMetrics

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "recipes" / "README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {"", "sh", "console", "bash"}
AT_THE_PROMPT = {
    method.command_name
    for _, method in inspect.getmembers(Prompt)
    if hasattr(method, "command_name")
}


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(path.read_text()) if language in languages]


def pages_module() -> ModuleType:
    """docs/pages.py, which makes the reference."""
    spec = importlib.util.spec_from_file_location("docs_pages", DOCS / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made() -> dict[str, str]:
    return dict(pages_module().generated())


def test_the_readme_can_be_read_at_once() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@needs_program("mkdocs")
def test_the_docs_build_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [path_of("mkdocs"), "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert (tmp_path / "reference" / "commands.html").exists()
    assert (tmp_path / "recipes" / "canary.py.html").exists()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_line_is_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flows.mitm").touch()  # what the pages call a file that has been saved
    for block in blocks(path, *SHELL):
        # A command that leaves something to the reader has dots, and is not complete.
        for command in in_shell(block):
            if not any(word in ("…", "...") or word.startswith("<") for word in command):
                parse(command)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_program_compiles_and_imports_what_there_is(path: Path) -> None:
    for block in blocks(path, "python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("whip_"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("name", ["flows.md", "instances.md"])
def test_the_commands_and_facts_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"\bwhip\.[a-z_.]*[a-z]", (DOCS / name).read_text()))
    assert named <= set(MEANINGS) | AT_THE_PROMPT | {HOST}


# The reference


def test_the_reference_has_every_command_and_option() -> None:
    text = made()["reference/commands.md"]
    for name, command in pages_module().walk(main, "whip"):
        assert f"## {name}\n" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"| `{parameter.opts[0]}`" in text, (name, parameter.name)
    text = made()["reference/options.md"]
    assert all(f"| `{option.name}` |" in text for option in OPTIONS)


def test_the_reference_has_every_hook_fact_and_command_of_the_prompt() -> None:
    pages = made()
    hooks = [name for name in vars(hookspecs) if name.startswith("whip_")]
    assert len(hooks) > 8
    assert all(f"## {name}\n" in pages["reference/hooks.md"] for name in hooks)
    assert all(f"| `{key}` |" in pages["reference/facts.md"] for key in MEANINGS)
    assert len(AT_THE_PROMPT) >= 6
    assert all(f"## {name}\n" in pages["reference/prompt.md"] for name in AT_THE_PROMPT)


def test_the_reference_has_every_metric() -> None:
    text = made()["reference/metrics.md"]
    for registry in (BrokerMetrics().registry, AgentMetrics().registry):
        for family in registry.collect():
            assert f"| `{family.name}" in text
    assert "| `whip_server_parked_connections` | gauge | `domain` |" in text


def test_the_map_of_modules_has_each_with_a_word_on_it() -> None:
    text = made()["reference/modules.md"]
    for package in ("whip_core", "client_agent", "whip_addon"):
        for path in (DOCS.parent / package).rglob("*.py"):
            parts = path.relative_to(DOCS.parent / package).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            assert re.search(rf"^\| `{name}` \| \S", text, re.MULTILINE), name


def test_every_command_and_option_has_a_word_of_help() -> None:
    for name, command in pages_module().walk(main, "whip"):
        assert command.help or command.short_help, name


# Migration


def test_every_flag_that_the_migration_names_exists() -> None:
    text = (DOCS / "migration.md").read_text()
    for title, command in (("whip client", "client"), ("whip proxy", "proxy"), ("Both", "proxy")):
        section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        named = {
            flag
            for row in section.splitlines()
            if row.startswith("|")
            for flag in re.findall("--[a-z][a-z-]+", row.split("|")[2])
        }
        assert len(named) > 3
        found = main.get_command(click.Context(main), command)
        assert found is not None
        assert named <= {option for parameter in found.params for option in parameter.opts}
