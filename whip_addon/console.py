"""What whip shows in mitmproxy's console, where that is the screen that runs.

The two lines at the bottom are for messages that pass: the next message, a key or a flow takes
their place. So what is on for a while stands in a line of its own, with the status bar.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import ctx

ATTRIBUTE = "error"
"""How the palette shows a note: red."""


class StatusNote:
    """`note` gives a line below the status bar, whenever that is drawn; "" is none."""

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
        urwid: Any = sys.modules["urwid"]  # what the window is made of
        redraw = bar.redraw

        def redraw_with_note() -> None:
            redraw()
            if note := self._note():
                line = urwid.AttrMap(urwid.Text(note), ATTRIBUTE)
                bar.ib._w = urwid.Pile([bar.ib._w, line])

        self._bar = bar
        bar.redraw = self._installed = redraw_with_note

    def uninstall(self) -> None:
        # A script that is loaded anew may have come before the old one has gone.
        if self._bar is not None and self._bar.redraw is self._installed:
            del self._bar.redraw  # the class's own is seen again


def show_lines(lines: Sequence[str]) -> None:
    """A box over the flow list, until `q`. Without a console, nothing."""
    overlay = sys.modules.get("mitmproxy.tools.console.overlay")
    if overlay is not None and hasattr(ctx.master, "overlay"):
        # Rows of one cell: with more, it makes all of them equally wide.
        box = overlay.DataViewerOverlay(ctx.master, [[line] for line in lines])
        ctx.master.overlay(box, valign="top")
