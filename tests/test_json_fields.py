"""What another program wrote is what it has to be, or refused in words that say what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from whip_core.errors import RemoteProtocolError
from whip_core.json_fields import array, line, mapping, number, parsed, text, whole_number

HUGE = 10**400
"""JSON's integers have no bound, and a float cannot hold this one."""


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (text, "\n"),
        (line, ""),
        (line, "a \N{BULLET}"),
        (mapping, {"a": 1}),
        (array, [1, "2"]),
        (whole_number, 0),
        (whole_number, HUGE),
        (number, -1.5),
        (number, 3),
    ],
)
def test_what_is_right_is_given_back(read: Callable[[Any, str], object], value: object) -> None:
    assert read(value, "it") == value


@pytest.mark.parametrize(
    ("read", "value", "why"),
    [
        (text, None, "it is not a string"),
        (text, 1, "it is not a string"),
        (line, ["a"], "it is not a string"),
        (line, "a\nb", "it is not printable text"),
        (line, "\ud800", "it is not printable text"),
        (mapping, [], "it is not a JSON object"),
        (array, {}, "it is not a list"),
        (array, "ab", "it is not a list"),
        (whole_number, True, "it is not a whole number"),
        (whole_number, 1.0, "it is not a whole number"),
        (whole_number, -1, "it is not a whole number"),
        (number, True, "it is not a number"),
        (number, "1", "it is not a number"),
        (number, float("nan"), "it is not a number"),
        (number, float("inf"), "it is not a number"),
        (number, HUGE, "it is not a number"),
        (parsed, "[]", "it is not a JSON object"),
        (parsed, b"\xff", "it is not valid JSON: "),
        (parsed, "{", "it is not valid JSON: "),
        (parsed, "[" * 100_000, "it is not valid JSON: "),
        (parsed, '{"a": ' + "1" * 10_000 + "}", "it is not valid JSON: "),
    ],
)
def test_what_is_not_is_refused_by_name(
    read: Callable[[Any, str], object], value: object, why: str
) -> None:
    with pytest.raises(RemoteProtocolError) as raised:
        read(value, "it")
    said = str(raised.value)
    assert said.startswith(why) if why.endswith(" ") else said == why


def test_bounds_are_told() -> None:
    assert (array([1, 2], "it", 2), whole_number(9, "it", 9)) == ([1, 2], 9)
    with pytest.raises(RemoteProtocolError, match="it is not a list of 2"):
        array([1], "it", 2)
    with pytest.raises(RemoteProtocolError, match="it is not a number from 0 to 9"):
        whole_number(10, "it", 9)
