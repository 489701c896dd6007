"""A message's header fields, looked at as they came.

`Headers.get`, and each of its kin, decodes and joins for every name that it is asked for.
Each request is asked for half a dozen that most do not have.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

from mitmproxy.http import Message


def values(message: Message, name: bytes) -> list[bytes]:
    """The values of the fields with this name, which is in lower case; [] if there is none."""
    return [value for each, value in message.headers.fields if each.lower() == name]


def text(value: bytes) -> str:
    """As mitmproxy decodes a value; never raises."""
    return value.decode("utf-8", "surrogateescape")
