"""Plugins from installed packages, modules and files; `whip plugins`; commands of plugins."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from packages import install
from whip_core.cli import main
from whip_core.errors import SettingsError
from whip_core.plugin_sources import load_plugins

PICKER = """
from __future__ import annotations
from dataclasses import dataclass, field
from whip_core import hookimpl

@dataclass
class Settings:
    label: str = field(default="zone", metadata={"help": "the label that decides"})

@hookimpl
def whip_settings():
    return Settings

@hookimpl
def whip_configure(settings):
    pass

@hookimpl
def whip_pick(candidates):
    return candidates[0]
"""

Install = Callable[..., None]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def have(name: str, entry_points: str, **modules: str) -> None:
        install(tmp_path / name, monkeypatch, name, entry_points, **modules)

    return have


def whip(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_an_installed_plugin_is_found_by_its_entry_point(packages: Install) -> None:
    packages("whip-zones", "[whip]\nzones = zones_plugin\n", zones_plugin=PICKER)
    [plugin] = load_plugins()
    assert (plugin.name, str(plugin.origin)) == (
        "zones",
        "whip-zones 1.0 (entry point zones_plugin)",
    )
    assert load_plugins(without=["zones"]) == []


def test_agents_load_a_group_of_their_own(packages: Install) -> None:
    packages("whip-zones", "[whip.agent]\nzones = zones_plugin\n", zones_plugin=PICKER)
    assert load_plugins() == []
    assert [plugin.name for plugin in load_plugins(group="whip.agent")] == ["zones"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import not_there_at_all", "No module named 'not_there_at_all'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError: invalid syntax (broken_plugin.py, line 1)"),
    ],
)
def test_a_broken_one_is_named_with_its_package_and_with_the_way_out(
    source: str, why: str, packages: Install
) -> None:
    packages("whip-broken", "[whip]\nbroken = broken_plugin\n", broken_plugin=source)
    with pytest.raises(SettingsError) as raised:
        load_plugins()
    assert str(raised.value) == (
        f"cannot load plugin broken of whip-broken 1.0 (entry point broken_plugin): {why}; "
        "--no-plugin broken leaves it out"
    )
    assert load_plugins(without=["broken"]) == []


def test_leaving_out_what_is_not_there_is_an_error(packages: Install) -> None:
    with pytest.raises(SettingsError, match=r"no plugin zones to leave out; .* bring: none"):
        load_plugins(without=["zones"])


def test_a_file_is_run_anew_and_called_by_its_stem(tmp_path: Path) -> None:
    file = tmp_path / "zones.py"
    file.write_text(PICKER)
    [one], [two] = load_plugins([str(file)]), load_plugins([str(file)])
    assert (one.name, str(one.origin)) == ("zones", f"file {file}")
    assert one.plugin is not two.plugin


def test_a_file_that_fails_leaves_no_module_behind(tmp_path: Path) -> None:
    file = tmp_path / "failing.py"
    file.write_text("raise OSError('no disk')")
    before = set(sys.modules)
    with pytest.raises(SettingsError) as raised:
        load_plugins([str(file)])
    assert str(raised.value) == f"cannot load plugin {file}: no disk"
    assert {name for name in set(sys.modules) - before if "failing" in name} == set()


def test_a_module_is_called_by_its_whole_name(packages: Install) -> None:
    packages("some-package", "", some_module=PICKER)
    [plugin] = load_plugins(["some_module"])
    assert (plugin.name, str(plugin.origin)) == ("some_module", "module some_module")
    with pytest.raises(SettingsError, match=r"cannot load plugin a\.b: .*a file's name ends in"):
        load_plugins(["a.b"])


# `whip plugins`


def _listed(*arguments: str) -> dict[str, dict[str, Any]]:
    result = whip("plugins", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {plugin["name"]: plugin for plugin in json.loads(result.stdout)}


def test_plugins_lists_what_is_loaded_from_where_with_hooks_and_settings(
    packages: Install, tmp_path: Path
) -> None:
    packages("whip-zones", "[whip]\nzones = zones_plugin\n", zones_plugin=PICKER)
    file = tmp_path / "mine.py"
    file.write_text(PICKER)
    found = _listed("--plugin", str(file), "--plugin-set=mine.label=rack")
    assert found["picker"]["origin"]["kind"] == "built-in"
    assert found["certificate"]["hooks"] == ["whip_authorize_agent"]
    assert "whip_dial_finished" in found["metrics"]["hooks"]
    assert found["zones"]["origin"] == {
        "kind": "entry point",
        "place": "zones_plugin",
        "distribution": "whip-zones",
        "version": "1.0",
    }
    assert found["mine"]["origin"]["place"] == str(file)
    assert found["mine"]["settings"] == [
        {
            "key": "label",
            "type": "str",
            "default": "zone",
            "help": "the label that decides",
            "variable": "WHIP_PLUGIN_MINE_LABEL",
            "value": "rack",
        }
    ]
    assert "zones" not in _listed("--no-plugin=zones")


def test_built_in_plugins_that_options_bring_are_listed_too(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[caller]]\nrule = "all"\nwho = "*"\n')
    found = _listed("--outlier-ejection=true", f"--policy={policy}")
    assert {"policy", "outlier-ejection"} <= found.keys()
    assert "policy" not in _listed()


def test_for_people_there_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PICKER)
    result = whip("plugins", f"--plugin={tmp_path / 'mine.py'}")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["NAME", "FROM", "HOOKS"]
    assert [line.split() for line in lines if line.startswith("picker")] == [
        ["picker", "built-in", "whip_pick"]
    ]
    assert "mine.label=zone  str; the label that decides (WHIP_PLUGIN_MINE_LABEL)" in lines


def test_those_of_an_agent_are_listed_apart(packages: Install) -> None:
    source = "from whip_core import hookimpl\n@hookimpl\ndef whip_open_local(): ...\n"
    packages("whip-local", "[whip.agent]\nlocal = local_plugin\n", local_plugin=source)
    assert list(_listed("--agent")) == ["local"]
    assert "local" not in _listed()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plugin=nowhere.py"], "cannot load plugin nowhere.py: "),
        (["--no-plugin=nothing"], "no plugin nothing to leave out"),
        (["--plugin-set=x.y=1"], "x.y: there is no plugin x"),
        (["--plugin-set=x"], "plugin setting 'x' is not PLUGIN.KEY=VALUE"),
        (["--picker=best"], "no picker 'best'"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    result = whip("plugins", *arguments)
    assert result.exit_code == 2
    assert says in result.output.strip().splitlines()[-1]
    assert "Traceback" not in result.output


# Commands that plugins bring


def test_a_plugin_brings_a_command(packages: Install) -> None:
    source = "import click\n@click.command()\ndef hello():\n    click.echo('hello')\n"
    packages("whip-hello", "[whip.commands]\nhello = hello_command:hello\n", hello_command=source)
    assert whip("hello").stdout == "hello\n"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import not_there_at_all", "No module named 'not_there_at_all'"),
        ("1 / 0", "division by zero"),
        ("hello = 1", "hello_command:hello is not a click command"),
        ("", "module 'hello_command' has no attribute 'hello'"),
    ],
)
def test_one_that_cannot_be_had_says_so_in_one_line_and_hurts_no_other(
    source: str, why: str, packages: Install
) -> None:
    packages("whip-hello", "[whip.commands]\nhello = hello_command:hello\n", hello_command=source)
    result = whip("hello", "--any=option")
    assert result.exit_code == 1
    assert result.output == f"Error: `whip hello` is not available here: whip-hello 1.0: {why}\n"
    assert whip("--help").exit_code == 0
    assert whip("plugins").exit_code == 0


@pytest.mark.parametrize("is_first", [True, False])
def test_no_package_takes_the_place_of_a_command_of_ours(
    is_first: bool, packages: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import click\n@click.command()\ndef plugins():\n    click.echo('taken')\n"
    packages("thief", "[whip.commands]\nplugins = thief_command:plugins\n", thief_command=source)
    if not is_first:
        monkeypatch.setattr(sys, "path", [*sys.path[1:], sys.path[0]])
    assert "taken" not in whip("plugins").output
