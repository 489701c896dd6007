"""Options from the command line and from the environment: both say the same."""

from __future__ import annotations

import os
from typing import Any

import pytest

from command_lines import parse

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
