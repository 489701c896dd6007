"""How a moment is written where a person reads it: the end of a certificate, of a list."""

from __future__ import annotations

from datetime import datetime


def day(moment: datetime) -> str:
    """`moment`, which is in UTC, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
