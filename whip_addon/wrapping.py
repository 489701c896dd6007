"""mitmproxy's methods, wrapped as long as an addon is loaded that wants them so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Wrapper = Callable[[Any], Any]
"""Gives what takes the place of the method that it is given."""
Methods = Sequence[tuple[Any, str, Wrapper]]
"""Each an owner, a name and the wrapper; those that an owner lacks are passed over."""


class Wrapping:
    """`methods` are looked for when the first holder comes.

    A script that is loaded anew comes before the old one has gone, so holders are counted.
    """

    def __init__(self, methods: Callable[[], Methods]) -> None:
        self._methods = methods
        self._holders = 0
        self._originals: list[tuple[Any, str, Any]] = []

    def hold(self) -> None:
        if self._holders == 0:
            for owner, name, wrapper in self._methods():
                original = getattr(owner, name, None)
                if callable(original):
                    self._originals.append((owner, name, original))
                    setattr(owner, name, wrapper(original))
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            while self._originals:
                setattr(*self._originals.pop())


class Held:
    """One addon's hold on `wrapping`; taken and let go any number of times."""

    def __init__(self, wrapping: Wrapping) -> None:
        self._wrapping = wrapping
        self._holds = False

    def install(self) -> None:
        if not self._holds:
            self._wrapping.hold()
            self._holds = True

    def uninstall(self) -> None:
        if self._holds:
            self._holds = False
            self._wrapping.release()
