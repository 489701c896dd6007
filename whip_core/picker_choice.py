"""Which picker, as an option says it: `two-choices`, `random,testdom=sticky:header=x-user`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from whip_core.agents import AgentView
from whip_core.caller import Caller
from whip_core.errors import SettingsError
from whip_core.hookspecs import hookimpl
from whip_core.names import Target, normalize
from whip_core.pickers import (
    LeastStreams,
    LowestRTT,
    Picker,
    RandomPicker,
    RoundRobin,
    TwoChoices,
)
from whip_core.sticky import Sticky, cookie_key, header_key

DEFAULT = "random"
STICKY = "sticky"
PICKERS: Mapping[str, Callable[[], Picker]] = MappingProxyType(
    {
        DEFAULT: RandomPicker,
        "round-robin": RoundRobin,
        "least-streams": LeastStreams,
        "lowest-rtt": LowestRTT,
        "two-choices": TwoChoices,
        STICKY: Sticky,
    }
)
STICKY_BY = {"header": header_key, "cookie": cookie_key}
"""What comes behind `sticky:`; nothing is `sticky:caller`."""


def make_picker(text: str) -> ChosenPicker:
    """The picker plugin that `text` asks for: one for all, and others for single domains.

    Parts are separated by commas: a picker, or `domain=picker`. Raises `SettingsError`,
    one line that lists the pickers.
    """
    default: Picker | None = None
    by_domain: dict[str, Picker] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        # The name of a domain has no colon; `sticky:header=x-user` has one before its "=".
        head, equals, rest = part.partition("=")
        if equals and ":" not in head:
            domain = _domain(head, part)
            if domain in by_domain:
                raise SettingsError(f"{text!r} has two pickers for {domain}; give one")
            by_domain[domain] = _one(rest)
        elif default is not None:
            raise SettingsError(f"{text!r} has two pickers for every domain; give one")
        else:
            default = _one(part)
    return ChosenPicker(default or PICKERS[DEFAULT](), by_domain)


class ChosenPicker:
    """The picker as a plugin: a domain's own, else the one for all. Others come before it."""

    whip_name = "picker"

    def __init__(self, default: Picker, by_domain: Mapping[str, Picker]) -> None:
        self._default = default
        self._by_domain = by_domain

    def picks_by_caller(self, target: Target | None) -> bool:
        """Whether it goes by the caller for `target`; for None: for any at all."""
        if target is None:
            return any(picker.by_caller for picker in (self._default, *self._by_domain.values()))
        return self._for(target).by_caller

    @hookimpl(trylast=True)
    def whip_pick(
        self, target: Target, candidates: Sequence[AgentView], caller: Caller
    ) -> AgentView:
        return self._for(target).pick(target, candidates, caller)

    def _for(self, target: Target) -> Picker:
        return self._by_domain.get(target.name, self._default)


def _one(text: str) -> Picker:
    name, colon, by = text.partition(":")
    if name not in PICKERS:
        raise SettingsError(f"there is no picker {name!r}; choose one of {', '.join(PICKERS)}")
    if not colon or (name == STICKY and by == "caller"):
        return PICKERS[name]()
    if name != STICKY:
        raise SettingsError(f"the picker {name} takes nothing after its name; write {name}")
    kind, _, what = by.partition("=")
    if kind not in STICKY_BY or not what.strip():
        raise SettingsError(
            f"{text!r}: {STICKY} goes by caller, header or cookie; write {STICKY}, "
            f"{STICKY}:header=NAME or {STICKY}:cookie=NAME"
        )
    return Sticky(STICKY_BY[kind](what.strip()))


def _domain(text: str, part: str) -> str:
    try:
        return normalize(text)
    except ValueError as error:
        raise SettingsError(f"{part!r}: {error}; write DOMAIN=PICKER") from error
