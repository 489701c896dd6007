"""whip's parts as mitmproxy sees them: one addon with all their hooks.

mitmproxy looks into every addon at every event, whether it has a hook for it or not, and
puts the event's arguments together anew for each that has. A request is eight events.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import hooks

HookFunction = Callable[..., None]


class Parts:
    """Calls each part's hooks in the order of the parts.

    As among addons that stand in `addons`, an error in one of them keeps an event from those
    behind it. A part that waits, or has commands, must be an addon of its own: `TypeError`.
    """

    name = "whip.parts"

    def __init__(self, *parts: object) -> None:
        for hook in hooks.all_hooks:
            functions = [getattr(part, hook) for part in parts if hasattr(part, hook)]
            for function in functions:
                if inspect.iscoroutinefunction(function):
                    raise TypeError(f"{function.__qualname__} cannot be waited for")
            if functions:
                setattr(self, hook, functions[0] if len(functions) == 1 else _each(functions))


def _each(functions: Sequence[HookFunction]) -> HookFunction:
    def call_each(*arguments: Any) -> None:
        for function in functions:
            function(*arguments)

    return call_each
