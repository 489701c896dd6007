"""What is wrong in a policy is said in one line, with the rule, before anything listens."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from whip_core import Broker, BrokerSettings
from whip_core.cli import main
from whip_core.errors import SettingsError
from whip_core.policy_file import parse_policy

ANYONE = '[[caller]]\nwho = "*"\n'


def wrong(text: str) -> str:
    with pytest.raises(SettingsError) as raised:
        parse_policy(text, "p.toml")
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith("policy p.toml: ")
    return said.removeprefix("policy p.toml: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("who = ", "Invalid value"),
        ("[[callers]]\nwho = '*'\n", "there is no 'callers' at the top: write one of dry-run, "),
        ("[caller]\nwho = '*'\n", "caller: write it as [[caller]], once for each rule"),
        (f"dry-run = 'yes'\n{ANYONE}", "dry-run = 'yes': write true or false"),
        ("dry_run = 1\n", "dry_run = 1: write true or false"),
        ("dry-run = true\ndry_run = true\n", "dry-run and dry_run are the same: write one"),
        ("[[caller]]\n", "[[caller]] 1: it does not say who: give users, certificates, networks"),
        (f"{ANYONE}[[caller]]\nuser = 'a'\n", "[[caller]] 2: there is no 'user' in it: write one"),
        ("[[caller]]\nrule = 'me'\nusers = 1\n", "[[caller]] 1 (me): users = 1: write a string"),
        ("[[caller]]\nusers = []\n", "users = []: write a string, or a list of strings"),
        ("[[caller]]\nusers = ['']\n", "users = ['']: write a string, or a list of strings"),
        ("[[caller]]\nwho = 'me'\n", "who = 'me': write \"*\", or one of users, certificates"),
        (f"{ANYONE}users = 'a'\n", 'who = "*" and users contradict each other: take one out'),
        (f"{ANYONE}rule = ''\n", "rule = '': write its name"),
        (f"{ANYONE}allow = 'no'\n", "allow = 'no': write true or false"),
        ("[[caller]]\nnetworks = '10.0.0.1/8'\n", "networks = '10.0.0.1/8': 10.0.0.1/8 has host"),
        ("[[caller]]\nnetworks = 'here'\n", "'here' does not appear to be an IPv4 or IPv6"),
        (f"{ANYONE}names = 'a b'\n", "names = 'a b': 'a b' is not a host name"),
        (f"{ANYONE}names = '*/x'\n", "'*/x' is not a pattern of names, such as db*.testdom"),
        (f"{ANYONE}ports = []\n", "ports = []: write a port, a span such as"),
        (f"{ANYONE}ports = true\n", "True is not a port: write 443"),
        (f"{ANYONE}ports = 'web'\n", "'web' is not a port: write 443"),
        (f"{ANYONE}ports = 65536\n", "65536 is not a port"),
        (f"{ANYONE}ports = '9-8'\n", "'9-8' goes backwards"),
        (f"{ANYONE}labels = 'a'\n", 'write labels as { zone = "eu" }'),
        (f"{ANYONE}labels = {{ a = 1 }}\n", 'write labels as { zone = "eu" }'),
        (f"{ANYONE}hours = '8-18'\n", "'8-18' are not hours: write \"08:00-18:00\""),
        (f"{ANYONE}hours = '08:00-25:00'\n", "'08:00-25:00': hour must be in 0..23"),
        (f"{ANYONE}days = 'monday'\n", "'monday' is not a day: write mon, tue"),
        (f"{ANYONE}[[agent]]\nusers = 'a'\n", "[[agent]] 1: there is no 'users' in it"),
        (f"{ANYONE}[[agent]]\n", "[[agent]] 1: it does not say who: give certificates, networks"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_rule(text: str, says: str) -> None:
    assert says in wrong(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"policy .*none\.toml: cannot read it: .*No such file"):
        Broker(BrokerSettings(policy=tmp_path / "none.toml"))


@pytest.mark.parametrize("command", [("forward", "0:a.b:80"), ("proxy",)])
def test_a_command_refuses_it_as_a_wrong_call(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[[caller]]\nuser = 'me'\n")
    plain = ("--tls=false", "--whip-external-tcp-address=localhost", f"--policy={path}")
    result = CliRunner().invoke(main, [*command, *plain])
    assert result.exit_code == 2
    assert f"Error: policy {path}: [[caller]] 1: there is no 'user' in it" in result.stderr
