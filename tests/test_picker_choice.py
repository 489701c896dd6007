"""What --picker takes, and what it says to what it does not."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from agent_views import views
from whip_core import Broker, BrokerSettings
from whip_core.caller import Caller
from whip_core.cli import main
from whip_core.errors import SettingsError
from whip_core.names import Target
from whip_core.picker_choice import PICKERS, make_picker
from whip_core.pickers import LeastStreams, RandomPicker, RoundRobin, TwoChoices
from whip_core.sticky import Sticky

ALL = "random, round-robin, least-streams, lowest-rtt, two-choices, sticky"


def chosen(text: str, name: str = "testdom") -> object:
    return make_picker(text)._for(Target(name, 80))


@pytest.mark.parametrize("name", PICKERS)
def test_each_picker_is_found_by_its_name(name: str) -> None:
    assert isinstance(chosen(name), type(PICKERS[name]()))


def test_random_is_the_default() -> None:
    assert isinstance(chosen(""), RandomPicker)
    assert isinstance(chosen("testdom=sticky", "otherdom"), RandomPicker)
    assert BrokerSettings().picker == "random"


def test_a_domain_may_have_its_own() -> None:
    text = "two-choices, TestDom.=sticky:header=x-user ,otherdom=round-robin"
    assert isinstance(chosen(text, "testdom"), Sticky)
    assert isinstance(chosen(text, "otherdom"), RoundRobin)
    assert isinstance(chosen(text, "elsewhere"), TwoChoices)
    picker = make_picker(text)
    assert [picker.picks_by_caller(Target(name, 80)) for name in ("testdom", "otherdom")] == [
        True,
        False,
    ]


def test_as_a_plugin_it_picks_as_its_picker_does() -> None:
    candidates = views(50)
    caller = Caller(proxy_user="me")
    expected = Sticky().pick(Target("testdom", 80), candidates, caller)
    picker = make_picker("testdom=sticky:caller")
    assert picker.whip_pick(Target("testdom", 80), candidates, caller) is expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("best", f"there is no picker 'best'; choose one of {ALL}"),
        ("testdom=best", f"there is no picker 'best'; choose one of {ALL}"),
        ("testdom=", f"there is no picker ''; choose one of {ALL}"),
        ("random,sticky", "'random,sticky' has two pickers for every domain; give one"),
        ("a=random,A.=sticky", "'a=random,A.=sticky' has two pickers for a; give one"),
        ("random:header=x", "the picker random takes nothing after its name; write random"),
        ("sticky:", "'sticky:': sticky goes by caller, header or cookie; write sticky, "),
        ("sticky:header=", "write sticky, sticky:header=NAME or sticky:cookie=NAME"),
        ("sticky:path=x", "write sticky, sticky:header=NAME or sticky:cookie=NAME"),
        ("a b=sticky", "'a b=sticky': 'a b' is not a host name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        make_picker(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_broker_checks_it_before_anything_listens() -> None:
    with pytest.raises(SettingsError, match="no picker 'best'"):
        Broker(BrokerSettings(picker="best"))


def run(*arguments: str, **env: str) -> tuple[int, str]:
    plain = ("--tls=false", "--whip-external-tcp-address=localhost")
    result = CliRunner().invoke(main, ["forward", "0:a.b:80", *plain, *arguments], env=env)
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--picker=least-streams,a=best",), ("--picker=least-streams", "--picker=a=best")],
)
def test_a_command_takes_the_option_more_than_once_or_with_commas(
    arguments: tuple[str, ...],
) -> None:
    status, said = run(*arguments)
    assert status == 2
    assert f"Error: --picker: there is no picker 'best'; choose one of {ALL} (see: " in said


def test_the_environment_is_the_same_as_the_option() -> None:
    status, said = run(WHIP_PICKER="random,b=worst")
    assert status == 2
    assert "--picker: there is no picker 'worst'" in said


def test_the_help_lists_the_pickers() -> None:
    said = CliRunner().invoke(main, ["forward", "--help"]).output
    listed = " ".join(said.split()).replace("- ", "-")
    assert ALL in listed


def test_least_streams_is_what_its_name_says() -> None:
    assert isinstance(chosen("least-streams"), LeastStreams)
