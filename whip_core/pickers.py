"""Choosing one agent of several. A picker is a plugin with the hook `whip_pick`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from whip_core.agents import AgentView
from whip_core.errors import SettingsError
from whip_core.hookspecs import hookimpl


class RandomPicker:
    """Every candidate equally often."""

    whip_name = "random"

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    @hookimpl(trylast=True)
    def whip_pick(self, candidates: Sequence[AgentView]) -> AgentView:
        return self._random.choice(candidates)


PICKERS: dict[str, Callable[[], object]] = {"random": RandomPicker}


def make_picker(name: str) -> object:
    """The picker plugin of that name; raises `SettingsError` if there is none."""
    try:
        return PICKERS[name]()
    except KeyError:
        raise SettingsError(
            f"there is no picker {name!r}; choose one of {', '.join(sorted(PICKERS))}"
        ) from None
