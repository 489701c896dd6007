"""Options from the command line and from the environment: both say the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from command_lines import parse
from whip_core.broker_options import BROKER_OPTIONS
from whip_core.broker_values import read_broker
from whip_core.cli import main

PLAIN = {"WHIP_EXTERNAL_TCP_ADDRESS": "localhost", "WHIP_DOMAIN": "testdom", "WHIP_PORTS": "80"}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WHIP_")]:
        monkeypatch.delenv(name)


def read(call: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command gets for its options."""
    for name, value in {**PLAIN, **environment}.items():
        monkeypatch.setenv(name, value)
    return parse(call.split()).params


@pytest.mark.parametrize(
    ("call", "variable", "option"),
    [
        ("whip client b:1", "WHIP_METRICS_LISTEN", "metrics_listen"),
        ("whip client b:1", "WHIP_EGRESS_PROXY", "egress_proxy"),
        ("whip proxy", "WHIP_METRICS_LISTEN", "metrics_listen"),
        ("whip forward 1:a.b:80", "WHIP_CONTROL_SOCKET", "whip_control_socket"),
        ("whip broker", "WHIP_CONTROL_SOCKET", "whip_control_socket"),
        ("whip doctor client b:1", "WHIP_EGRESS_PROXY", "egress_proxy"),
    ],
)
def test_a_variable_that_is_empty_turns_off_what_the_empty_option_turns_off(
    call: str, variable: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(call, {}, monkeypatch)[option] != ""
    assert read(call, {variable: ""}, monkeypatch)[option] == ""
    assert read(call, {variable: "x:1"}, monkeypatch)[option] == "x:1"


def test_where_empty_means_nothing_a_variable_that_is_empty_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = {f"WHIP_{name}": "" for name in ("TLS", "HOSTNAME", "LOG_LEVEL", "LABEL")}
    found = read("whip client b:1", empty, monkeypatch)
    assert [found[name] for name in ("tls", "hostname", "log_level", "label")] == [
        *(True, None, "info", ())
    ]


@pytest.mark.parametrize("variable", ["WHIP_GRPC_LISTEN_PORT", "WHIP_WHIP_GRPC_LISTEN_PORT"])
def test_an_option_that_begins_with_whip_has_a_variable_that_does_so_once_or_twice(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read("whip proxy", {variable: "4711"}, monkeypatch)["whip_grpc_listen_port"] == 4711


@pytest.mark.parametrize(
    ("call", "variable", "text", "option", "values"),
    [
        ("whip proxy", "WHIP_DOMAIN", "a.test,b.test", "whip_domains", ["a.test", "b.test"]),
        ("whip proxy", "WHIP_DOMAIN", "a.test b.test,", "whip_domains", ["a.test", "b.test"]),
        ("whip client b:1", "WHIP_LABEL", "zone=eu,tier=a", "label", ["zone=eu", "tier=a"]),
        ("whip client b:1", "WHIP_LABEL", "of=a,b c,d=e", "label", ["of=a,b c", "d=e"]),
        ("whip client b:1", "WHIP_PLUGIN", "a.py,b", "plugin", ["a.py", "b"]),
        ("whip client b:1", "WHIP_PLUGIN_SET", "p.a=1,2,p.b=3", "plugin_set", ["p.a=1,2", "p.b=3"]),
        ("whip broker", "WHIP_PLUGIN_SET", "p.a=x=1,y=2", "whip_plugin_set", ["p.a=x=1,y=2"]),
    ],
)
def test_a_variable_has_several_values_with_commas_or_spaces_between_them(
    call: str,
    variable: str,
    text: str,
    option: str,
    values: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert read(call, {variable: text}, monkeypatch)[option] == tuple(values)


def test_several_domains_fit_into_one_option() -> None:
    values = {option.name: option.default for option in BROKER_OPTIONS}
    values |= {"whip_external_tcp_address": "localhost", "whip_tls": False}
    values["whip_domains"] = ["a.test,B.test", "c.test"]
    assert read_broker(values).domains == ("a.test", "b.test", "c.test")


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name)


WITHOUT_A_LEVEL = {"addon-path", "mitmdump", "mitmproxy", "mitmweb"}
"""It prints a line; the others are mitmproxy's own tools."""


def test_every_command_takes_a_log_level() -> None:
    lacking = {
        " ".join(path)
        for path in commands(main)
        if path[0] not in WITHOUT_A_LEVEL
        and "--log-level" not in CliRunner().invoke(main, [*path, "--help"]).output
    }
    assert lacking == set()


def test_a_failure_shows_where_it_comes_from_only_to_who_debugs(tmp_path: Path) -> None:
    call = ["agents", f"--control-socket={tmp_path}/none"]
    [line] = CliRunner().invoke(main, call).stderr.splitlines()
    traced = CliRunner().invoke(main, [*call, "--log-level=debug"])
    assert traced.exit_code == 1
    assert traced.stderr.startswith("Traceback ")
    assert "FileNotFoundError" in traced.stderr
    assert traced.stderr.splitlines()[-1] == line
