"""Faults that a person puts on one instance, for a time: what they are, and which are on.

delay=2s       every answer of the instance comes that much later
throttle=10k   the instance's bytes come at that many a second (on each connection)
reset          its connections break as soon as something is asked of it
status=503     HTTP requests to it are answered with that status
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from whip_core.errors import SettingsError

KINDS = ("delay", "throttle", "reset", "status")
OFF = "off"
EXAMPLES = ("delay=500ms", "delay=2s", "throttle=10k", "reset", "status=503", OFF)
MAX_DELAY = 600.0
"""Seconds; mitmproxy gives a connection up that has been idle for so long (`tcp_timeout`)."""
MAX_DURATION = 24 * 3600
"""Seconds that a fault may be on: nobody remembers it for longer."""
MAX_TOLD = 3
"""Faults that fit into a line."""
UNITS = {"": 1, "k": 1024, "m": 1024**2}


@dataclass(frozen=True, slots=True)
class Fault:
    """`amount` is seconds (delay), octets a second (throttle) or the status."""

    kind: str
    amount: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Raises `SettingsError`, saying what a fault looks like."""
        kind, _, amount = text.strip().lower().partition("=")
        if kind == "reset" and not amount:
            return cls(kind)
        if kind == "delay" and (found := re.fullmatch(r"([0-9.]+)(ms|s)?", amount)):
            seconds = _number(found[1]) / (1000 if found[2] == "ms" else 1)
            if 0 < seconds <= MAX_DELAY:
                return cls(kind, seconds)
        if kind == "throttle" and (found := re.fullmatch(r"([0-9.]+)([km]?)b?", amount)):
            octets = _number(found[1]) * UNITS[found[2]]
            if 1 <= octets <= 1024**3:
                return cls(kind, octets)
        if kind == "status" and re.fullmatch("5[0-9][0-9]", amount):
            return cls(kind, int(amount))
        raise SettingsError(
            f"{text!r} is not a fault: delay=SECONDS (to {MAX_DELAY:g}), throttle=OCTETS (a "
            f"second, to 1024m), reset, status=5xx, or {OFF}"
        )

    def __str__(self) -> str:
        match self.kind:
            case "delay":
                return f"delay of {self.amount:g} s"
            case "throttle":
                return f"throttle to {self.amount:g} octets a second"
            case "status":
                return f"status {self.amount:g}"
        return self.kind


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


class Faults:
    """Which instance has a fault now. `over` is told of one whose time has passed."""

    def __init__(self, over: Callable[[str, Fault], None]) -> None:
        self._over = over
        self._active: dict[str, Fault] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def on(self, instance: str | None) -> Fault | None:
        """The fault of the instance, if it has one."""
        return self._active.get(instance) if self._active and instance is not None else None

    @property
    def any_on(self) -> bool:
        return bool(self._active)

    @property
    def active(self) -> dict[str, Fault]:
        return dict(self._active)

    def summary(self) -> str:
        """Which are on, and for how long yet; for a line of a screen. "" if none is."""
        now = asyncio.get_running_loop().time()
        told = [
            f"{instance}: {fault}, {max(0.0, self._timers[instance].when() - now):.0f} s more"
            for instance, fault in list(self._active.items())[:MAX_TOLD]
        ]
        if not told:
            return ""
        more = len(self._active) - len(told)
        return f"FAULT {'; '.join(told)}" + (f"; and {more} more" if more else "")

    def put(self, instance: str, fault: Fault, seconds: float) -> None:
        """Put a fault on an instance, in the place of another; raises `SettingsError`."""
        if not 0 < seconds <= MAX_DURATION:
            raise SettingsError(f"a fault lasts from 1 to {MAX_DURATION} seconds, not {seconds}")
        self.lift(instance)
        self._active[instance] = fault
        loop = asyncio.get_running_loop()
        self._timers[instance] = loop.call_later(seconds, self._passed, instance)

    def lift(self, instance: str) -> Fault | None:
        """End the fault of an instance; which one it was."""
        timer = self._timers.pop(instance, None)
        if timer is not None:
            timer.cancel()
        return self._active.pop(instance, None)

    def lift_all(self) -> None:
        for instance in list(self._active):
            self.lift(instance)

    def _passed(self, instance: str) -> None:
        fault = self.lift(instance)
        if fault is not None:
            self._over(instance, fault)
