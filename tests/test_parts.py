"""One addon with the hooks of many."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from mitmproxy.test import taddons, tflow

from tunnel import run
from whip_addon.parts import Parts


class Part:
    def __init__(self, name: str, told: list[str], error: Exception | None = None) -> None:
        self._name = name
        self._told = told
        self._error = error

    def request(self, flow: Any) -> None:
        self._told.append(f"{self._name} {flow.request.method}")
        if self._error is not None:
            raise self._error

    def not_a_hook(self) -> None:
        self._told.append("called")


class Ended(Part):
    def done(self) -> None:
        self._told.append(f"{self._name} done")


def test_mitmproxy_finds_the_hooks_that_some_part_has_and_no_others() -> None:
    parts = Parts(Part("a", []), Ended("b", []))
    assert set(vars(parts)) == {"request", "done"}


def test_each_event_goes_to_the_parts_in_their_order() -> None:
    told: list[str] = []
    parts = Parts(Part("a", told), Ended("b", told), Part("c", told))

    async def main() -> None:
        with taddons.context(parts) as context:
            await context.cycle(parts, tflow.tflow())
            context.master.addons.remove(parts)

    run(main())
    assert told == ["a GET", "b GET", "c GET", "b done"]


def test_an_error_keeps_an_event_from_the_parts_behind() -> None:
    told: list[str] = []
    parts = Parts(Part("a", told), Part("b", told, KeyError("trouble")), Part("c", told))
    with pytest.raises(KeyError, match="trouble"):
        parts.request(tflow.tflow())  # type: ignore[attr-defined]  # from its parts
    assert told == ["a GET", "b GET"]


def test_a_part_that_would_have_to_be_waited_for_is_refused() -> None:
    class Waits:
        async def request(self, flow: Any) -> None: ...

    with pytest.raises(TypeError, match=r"Waits\.request cannot be waited for"):
        Parts(Waits())


HOOKS = """
import whip_addon.lifecycle
from mitmproxy import hooks
known = set(hooks.all_hooks)
import mitmproxy.addons
print(*set(hooks.all_hooks) - known)
"""


def test_all_of_mitmproxys_hooks_are_known_when_the_parts_are_put_together() -> None:
    """One that mitmproxy makes known later would never reach a part that has it."""
    done = subprocess.run([sys.executable, "-c", HOOKS], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
