"""Registering plugins: what is refused, in which words; and what happens when they are asked."""

from __future__ import annotations

import logging
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tunnel import run
from whip_core import hookimpl
from whip_core.errors import SettingsError
from whip_core.hookspecs import ASKED_BY_AGENTS, ASKED_BY_BROKERS, HOOKS
from whip_core.plugin_host import SLOW, SLOW_AGAIN, NamedPlugin, Origin, PluginFailed, PluginHost


def host(*plugins: object) -> PluginHost:
    found = PluginHost(ASKED_BY_BROKERS, "a broker")
    for plugin in plugins:
        found.register(plugin)
    return found


def plugin(name: str, **hooks: Callable[..., Any]) -> types.ModuleType:
    """A module with these hooks, each marked as one."""
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    return module


# Registration


async def _pick_later(candidates: Any) -> None: ...


def _pick_by_generator(candidates: Any) -> Any:
    yield None


WRONG = {
    "plugin mine: there is no hook whip_pik: did you mean whip_pick?": plugin(
        "mine", whip_pik=lambda: None
    ),
    "plugin mine: whip_pick has no argument agents: there are target, candidates, caller": plugin(
        "mine", whip_pick=lambda agents: None
    ),
    "plugin mine: whip_settings has no argument x: it has none": plugin(
        "mine", whip_settings=lambda x: None
    ),
    "plugin mine: whip_pick: caller would never be given: write it without a default, "
    "before any *": plugin("mine", whip_pick=lambda target, caller=None: None),
    "plugin mine: whip_pick takes *rest, and is given arguments by their names": plugin(
        "mine", whip_pick=lambda **rest: None
    ),
    "plugin mine: whip_pick is asked synchronously, so it cannot be an async def": plugin(
        "mine", whip_pick=_pick_later
    ),
    "plugin mine: whip_pick cannot be a generator": plugin("mine", whip_pick=_pick_by_generator),
    "plugin mine has no hooks": types.ModuleType("mine"),
    "plugin mine: a broker asks none of whip_open_local": plugin(
        "mine", whip_open_local=lambda request: None
    ),
    "plugin mine: whip_settings and whip_configure go together": plugin(
        "mine", whip_configure=lambda settings: None
    ),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_wrong_is_one_line_that_names_plugin_hook_and_argument(says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        host(WRONG[says])
    assert str(raised.value) == says


def test_a_wrapper_is_refused_as_nobody_would_go_on_with_it() -> None:
    class Mine:
        @hookimpl(wrapper=True)
        def whip_pick(self) -> Any:
            return (yield)

    with pytest.raises(SettingsError, match="plugin Mine: whip_pick cannot be a wrapper"):
        host(Mine())


def test_a_hook_without_its_mark_is_said_to_be_without() -> None:
    class Mine:
        def whip_pick(self) -> None: ...

    with pytest.raises(SettingsError) as raised:
        host(Mine())
    assert str(raised.value) == "plugin Mine has no hooks: mark whip_pick with @hookimpl"


def test_a_class_is_no_plugin_but_its_instance_is() -> None:
    class Mine:
        @hookimpl
        def whip_pick(self) -> None: ...

    with pytest.raises(SettingsError, match="plugin Mine is a class: register an instance of it"):
        host(Mine)
    host(Mine())


def test_a_hook_that_may_be_missing_here_is_no_error() -> None:
    class Mine:
        @hookimpl
        def whip_pick(self) -> None: ...

        @hookimpl(optionalhook=True)
        def whip_of_a_later_version(self, anything: Any) -> None: ...

    host(Mine())


def test_a_plugin_that_was_refused_has_left_nothing_behind() -> None:
    found = host()
    with pytest.raises(SettingsError):
        found.register(plugin("mine", whip_pick=lambda: 1, whip_pik=lambda: 2))
    assert found.describe() == []
    assert found.first_result("whip_pick") is None


def test_one_plugin_is_not_registered_twice_and_no_two_are_loaded_under_one_name() -> None:
    one, two = (plugin("mine", whip_pick=lambda: None) for _ in range(2))
    with pytest.raises(SettingsError, match="plugin mine is loaded twice: object mine, and object"):
        host(one, one)
    loaded = NamedPlugin(two, "mine", Origin("entry point", "a.b", "some-package", "1.2"))
    with pytest.raises(SettingsError) as raised:
        host(one, loaded)
    assert str(raised.value) == (
        "plugin mine is loaded twice: object mine, and some-package 1.2 (entry point a.b)"
    )


def test_two_of_a_kind_handed_in_as_objects_are_two_plugins() -> None:
    class Mine:
        @hookimpl
        def whip_pick(self) -> None: ...

    assert [each.name for each in host(Mine(), Mine()).describe()] == ["Mine", "Mine"]


def test_brokers_and_agents_together_ask_every_hook() -> None:
    assert set(HOOKS) == ASKED_BY_AGENTS | ASKED_BY_BROKERS


# Asking


def test_the_last_registered_is_asked_first_unless_it_says_otherwise() -> None:
    def last() -> str:
        return "last"

    module = plugin("b", whip_pick=lambda: "b")
    modest = types.ModuleType("modest")
    modest.whip_pick = hookimpl(last, trylast=True)  # type: ignore[attr-defined]
    quiet = plugin("quiet", whip_pick=lambda: None)
    found = host(plugin("a", whip_pick=lambda: "a"), module, modest, quiet)
    assert found.first_result("whip_pick") == ("b", "b")


def test_what_raises_or_gives_a_coroutine_is_known_by_its_name() -> None:
    async def later() -> None: ...

    def fails(target: str) -> None:
        raise ZeroDivisionError(target)

    with pytest.raises(PluginFailed) as raised:
        host(plugin("mine", whip_resolve=fails)).first_result("whip_resolve", "x", None)
    assert str(raised.value) == "plugin mine: whip_resolve failed: ZeroDivisionError('x')"
    with pytest.raises(PluginFailed, match="plugin mine: whip_resolve returned an awaitable"):
        host(plugin("mine", whip_resolve=lambda: later())).first_result("whip_resolve")


def test_an_event_reaches_everybody_although_one_raises(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def fails() -> None:
        raise ZeroDivisionError

    found = host(
        plugin("a", whip_agent_left=lambda reason: told.append(reason)),
        plugin("b", whip_agent_left=fails),
    )
    found.notify("whip_agent_left", None, "gone")
    assert told == ["gone"]
    assert "plugin b: whip_agent_left failed" in caplog.text


def test_all_are_asked_for_a_reason_and_the_first_is_given() -> None:
    asked: list[str] = []

    def says(name: str, reason: str | None) -> Callable[[], str | None]:
        def reason_of() -> str | None:
            asked.append(name)
            return reason

        return reason_of

    found = host(
        plugin("a", whip_authorize_dial=says("a", "a says no")),
        plugin("b", whip_authorize_dial=says("b", "")),
        plugin("c", whip_authorize_dial=says("c", None)),
    )
    assert run(found.first_reason("whip_authorize_dial")) == "no reason given"
    assert asked == ["c", "b", "a"]


class _Clock:
    """Time that passes when somebody says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for name in ("monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, lambda: self.now)


def test_one_of_many_is_asked_with_the_same_care(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = _Clock(monkeypatch)

    def picks(target: str) -> str:
        clock.now += 0.25
        return target

    async def later() -> None: ...

    found = host(plugin("slow", whip_pick=picks), plugin("late", whip_pick=lambda: later()))
    late, slow = found.calls("whip_pick")
    assert (slow.takes, slow.owner.__name__) == (("target",), "slow")  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        assert found.answer(slow, "x", [], None) == "x"
    assert "plugin slow: whip_pick took 250 ms" in caplog.text
    with pytest.raises(PluginFailed, match="plugin late: whip_pick returned an awaitable"):
        found.answer(late, "x", [], None)


def test_a_slow_hook_is_named_with_its_time_and_not_again_for_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = _Clock(monkeypatch)

    def takes(seconds: float) -> None:
        clock.now += seconds

    @dataclass
    class Slow:
        """Like every dataclass that is not frozen, it has no hash."""

        whip_name: str = "slow"

        @hookimpl
        def whip_agent_left(self, reason: str) -> None:
            takes(float(reason))

    found = host(Slow())

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.WARNING):
        found.notify("whip_agent_left", None, str(SLOW / 2))
        assert warnings() == []
        for _ in range(3):
            found.notify("whip_agent_left", None, "0.25")
        assert warnings() == [
            "plugin slow: whip_agent_left took 250 ms and blocked everything else "
            "(logged at most once in 60 s)"
        ]
        clock.now += SLOW_AGAIN
        found.notify("whip_agent_left", None, "0.25")
        assert len(warnings()) == 2
