"""Settings of plugins: where they come from, what they may be, and what is wrong with them."""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from whip_core import hookimpl
from whip_core.errors import SettingsError
from whip_core.hookspecs import ASKED_BY_BROKERS
from whip_core.plugin_host import PluginHost
from whip_core.plugin_settings import PluginSettings, variable


@dataclass
class Canary:
    header: str = field(default="x-canary", metadata={"help": "the header to look at"})
    share: float = 0.5
    count: int = 1
    strict: bool = False
    file: Path | None = None
    labels: tuple[str, ...] = ()
    token: str = field(default="hush", repr=False)

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError("share is at most 1")


@dataclass
class Needy:
    url: str


class Plugin:
    def __init__(self, declared: Any) -> None:
        self.whip_name = "canary"
        self.declared = declared
        self.told: list[Any] = []

    @hookimpl
    def whip_settings(self) -> Any:
        return self.declared

    @hookimpl
    def whip_configure(self, settings: Any) -> None:
        self.told.append(settings)


def configured(declared: Any, *texts: str, **environ: str) -> tuple[PluginHost, Plugin]:
    plugin = Plugin(declared)
    host = PluginHost(ASKED_BY_BROKERS, "a broker")
    host.register(plugin)
    host.configure(PluginSettings.parse(texts, environ))
    return host, plugin


def told(declared: Any, *texts: str, **environ: str) -> Any:
    host, plugin = configured(declared, *texts, **environ)
    assert plugin.told == []
    host.start(None)
    host.start(None)
    [settings] = plugin.told
    return settings


def test_a_setting_is_what_was_said_else_in_the_environment_else_its_default() -> None:
    settings = told(
        Canary,
        "canary.header=x-test=1",
        "canary.share=0.25",
        WHIP_PLUGIN_CANARY_SHARE="0.75",
        WHIP_PLUGIN_CANARY_COUNT="3",
    )
    assert settings == Canary(header="x-test=1", share=0.25, count=3)


def test_text_becomes_what_the_field_is() -> None:
    settings = told(
        Canary,
        *("canary.strict=yes", "canary.file=/etc/canary", "canary.labels=a, b,,c"),
    )
    assert (settings.strict, settings.file) == (True, Path("/etc/canary"))
    assert settings.labels == ("a", "b", "c")
    assert told(Canary, "canary.strict=off").strict is False


def test_the_last_of_two_values_counts() -> None:
    assert told(Canary, "canary.count=1", "canary.count=2").count == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("canary", "plugin setting 'canary' is not PLUGIN.KEY=VALUE"),
        ("canary.header", "plugin setting 'canary.header' is not PLUGIN.KEY=VALUE"),
        ("header=x", "plugin setting 'header' is not PLUGIN.KEY=VALUE"),
        ("canari.header=x", "canari.header: there is no plugin canari: did you mean canary?"),
        (
            "canary.heder=x",
            "canary.heder: plugin canary has no setting heder; it has header, share, count, "
            "strict, file, labels, token",
        ),
        ("canary.count=1.5", "plugin canary: canary.count: '1.5' is not a whole number"),
        ("canary.share=much", "plugin canary: canary.share: 'much' is not a number"),
        ("canary.strict=perhaps", "plugin canary: canary.strict: 'perhaps' is neither true nor"),
        ("canary.share=2", "plugin canary: share is at most 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        configured(Canary, text)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def test_a_wrong_value_in_the_environment_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="plugin canary: WHIP_PLUGIN_CANARY_COUNT: 'x' is not"):
        configured(Canary, WHIP_PLUGIN_CANARY_COUNT="x")


def test_a_variable_of_nobody_is_nobodys_error() -> None:
    assert told(Canary, WHIP_PLUGIN_OTHER_KEY="x", WHIP_PLUGIN_SET="canary.x=1") == Canary()


def test_a_setting_without_a_default_has_to_be_given() -> None:
    with pytest.raises(SettingsError) as raised:
        configured(Needy)
    assert str(raised.value) == (
        "plugin canary needs its setting url: say --plugin-set canary.url=… or "
        "WHIP_PLUGIN_CANARY_URL"
    )
    assert told(Needy, "canary.url=http://a").url == "http://a"


@dataclass
class Unreadable:
    when: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (None, "plugin canary: whip_settings gave None, not a dataclass"),
        (Needy("x"), "plugin canary: whip_settings gave Needy"),
        (
            Unreadable,
            "plugin canary: its setting when is a dict[str, str], which cannot be read from text",
        ),
    ],
)
def test_what_cannot_be_settings_is_refused(declared: Any, says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        configured(declared)
    assert str(raised.value).startswith(says)


def test_a_plugin_without_settings_says_so() -> None:
    module = types.ModuleType("plain")
    module.whip_pick = hookimpl(lambda: None)  # type: ignore[attr-defined]
    host = PluginHost(ASKED_BY_BROKERS, "a broker")
    host.register(module)
    with pytest.raises(SettingsError, match=r"plain\.x: plugin plain has no settings"):
        host.configure(PluginSettings.parse(["plain.x=1"], {}))


def test_a_plugin_that_will_not_have_its_settings_ends_the_start() -> None:
    class Fussy(Plugin):
        @hookimpl
        def whip_configure(self, settings: Any) -> None:
            raise OSError(f"no such thing as {settings.header}")

    host = PluginHost(ASKED_BY_BROKERS, "a broker")
    host.register(Fussy(Canary))
    host.configure(PluginSettings())
    with pytest.raises(SettingsError, match="plugin canary: whip_configure failed: OSError"):
        host.start(None)


def test_settings_are_described_and_secrets_are_not() -> None:
    host, _ = configured(Canary, "canary.count=2", "canary.token=s3cret")
    [described] = host.describe()
    by_key = {setting.key: setting for setting in described.settings}
    assert (by_key["count"].type, by_key["count"].default, by_key["count"].value) == (
        "int",
        "1",
        "2",
    )
    assert by_key["header"].help == "the header to look at"
    assert by_key["header"].variable == "WHIP_PLUGIN_CANARY_HEADER"
    assert "s3cret" not in repr(described)
    assert "hush" not in repr(described)


def test_a_variable_is_the_name_in_capitals() -> None:
    assert variable("my-plugins.canary", "header") == "WHIP_PLUGIN_MY_PLUGINS_CANARY_HEADER"
