"""What whip shows in mitmproxy's console, where that is the screen that runs.

The two lines at the bottom are for messages that pass: the next message, a key or a flow takes
their place. So what is on for a while stands in the line above them, the status bar.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import ctx

ATTRIBUTE = "error"
"""How the palette shows a note: red, beside the bar's own colours."""


class StatusNote:
    """`note` gives what the status bar says first, whenever it is drawn; "" is nothing."""

    def __init__(self, note: Callable[[], str]) -> None:
        self._note = note
        self._bar: Any = None
        self._installed: Any = None

    def install(self) -> None:
        """Without a console, nothing."""
        window = getattr(ctx.master, "window", None)
        bar = getattr(window, "statusbar", None)
        if bar is None or self._bar is not None:
            return
        self._bar = bar
        get_status = bar.get_status

        def status_with_note() -> list[Any]:
            note = self._note()
            return [*([(ATTRIBUTE, f"[{note}]")] if note else []), *get_status()]

        bar.get_status = self._installed = status_with_note

    def uninstall(self) -> None:
        # A script that is loaded anew may have come before the old one has gone.
        if self._bar is not None and self._bar.get_status is self._installed:
            del self._bar.get_status  # the class's own is seen again


def show_lines(lines: Sequence[str]) -> None:
    """A box over the flow list, until `q`. Without a console, nothing."""
    overlay = sys.modules.get("mitmproxy.tools.console.overlay")
    if overlay is not None and hasattr(ctx.master, "overlay"):
        # Rows of one cell: with more, it makes all of them equally wide.
        box = overlay.DataViewerOverlay(ctx.master, [[line] for line in lines])
        ctx.master.overlay(box, valign="top")
