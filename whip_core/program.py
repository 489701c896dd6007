"""What the console scripts call: all of their imports can be broken off without a traceback."""

from __future__ import annotations

import sys

ABORTED = "Aborted!"
"""As click says it, with status 1 as it does; it is one of the things to be imported."""


def main() -> None:
    """`whip`."""
    try:
        from whip_core.cli import main as whip
    except KeyboardInterrupt:
        sys.exit(ABORTED)
    whip()


def whiphack() -> None:
    """`whiphack`."""
    try:
        from whip_core.cli import whiphack as helper
    except KeyboardInterrupt:
        sys.exit(ABORTED)
    helper()
