"""Reading JSON that somebody else wrote: an object, and what is in its fields.

Each takes what was found and gives it back as what it has to be; whatever is otherwise is a
`RemoteProtocolError`, whose text begins with `what` was read.
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from whip_core.errors import RemoteProtocolError


def parsed(data: str | bytes | bytearray, what: str) -> dict[str, Any]:
    """The object that `data` is, as a whole."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"{what} is not valid JSON: {error}") from error
    return mapping(value, what)


def mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{what} is not a JSON object")
    return value


def array(value: Any, what: str, length: int | None = None) -> list[Any]:
    """Of that length, if one is given."""
    if not isinstance(value, list) or length not in (None, len(value)):
        raise RemoteProtocolError(f"{what} is not a list" + (f" of {length}" if length else ""))
    return value


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{what} is not a string")
    return value


def line(value: Any, what: str) -> str:
    """Printable text, for what is logged: half a surrogate pair cannot even be encoded."""
    if not text(value, what).isprintable():
        raise RemoteProtocolError(f"{what} is not printable text")
    return str(value)


def whole_number(value: Any, what: str, most: int | None = None) -> int:
    """Not negative."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RemoteProtocolError(f"{what} is not a whole number")
    if most is not None and value > most:
        raise RemoteProtocolError(f"{what} is not a number from 0 to {most}")
    return value


def number(value: Any, what: str) -> float:
    """Finite."""
    with contextlib.suppress(OverflowError):  # JSON's integers may have any number of digits
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    raise RemoteProtocolError(f"{what} is not a number")
