"""Agents as lines of text: columns that are aligned, numbers as people read them."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from whip_core.names import printable

MAX_CELL = 80
"""Characters of one cell, where nothing else bounds the line."""
GAP = "  "

Agent = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    text: Callable[[Agent], str]
    is_number: bool = False


def human_bytes(count: float) -> str:
    """Three digits and a unit of thousands, as `ls -h --si` has it."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def human_age(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def human_milliseconds(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def _state(agent: Agent) -> str:
    return ",".join(word for word in ("draining", "ejected") if agent.get(word))


def _labels(agent: Agent) -> str:
    return " ".join(f"{key}={value}" for key, value in agent["labels"].items())


COLUMNS = (
    Column("NAME", lambda agent: agent["name"]),
    Column("PORTS", lambda agent: ",".join(map(str, agent["ports"]))),
    Column("RTT", lambda agent: human_milliseconds(agent["round_trip_ms"]), is_number=True),
    Column("STREAMS", lambda agent: str(agent["streams"]), is_number=True),
    Column("TO", lambda agent: human_bytes(agent["bytes_to_agent"]), is_number=True),
    Column("FROM", lambda agent: human_bytes(agent["bytes_from_agent"]), is_number=True),
    Column("PARKED", lambda agent: str(agent["parked"]), is_number=True),
    Column("SINCE", lambda agent: human_age(agent["since"]), is_number=True),
    Column("VERSION", lambda agent: agent["version"] or "-"),
    Column("ADDRESS", lambda agent: agent["address"]),
    Column("STATE", _state),
    Column("LABELS", _labels),
)


def lines(
    agents: Sequence[Agent], columns: Sequence[Column] = COLUMNS, width: int | None = None
) -> list[str]:
    """A heading and a line for each agent; cut at `width` columns of a terminal, if given.

    What an agent chose is shown without control characters, and bounded.
    """
    table = [[column.title for column in columns]]
    table += [[printable(column.text(agent), MAX_CELL) for column in columns] for agent in agents]
    # A column of which nobody has anything is left out.
    used = [
        index
        for index in range(len(columns))
        if len(table) == 1 or any(row[index] for row in table[1:])
    ]
    widths = {index: max(_width(row[index]) for row in table) for index in used}
    made = []
    for number, row in enumerate(table):
        cells = [_aligned(row[index], widths[index], columns[index].is_number) for index in used]
        line = GAP.join(cells).rstrip()
        if width is not None:
            line = _cut(line, width)
        made.append(
            click.style(line, bold=True) if number == 0 else _coloured(line, agents, number)
        )
    return made


def _coloured(line: str, agents: Sequence[Agent], number: int) -> str:
    return click.style(line, fg="yellow") if _state(agents[number - 1]) else line


def _aligned(text: str, width: int, is_number: bool) -> str:
    padding = " " * (width - _width(text))
    return padding + text if is_number else text + padding


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(line: str, width: int) -> str:
    if _width(line) <= width:
        return line
    kept, used = "", 0
    for character in line:
        used += _character_width(character)
        if used >= width:
            break
        kept += character
    return kept + "…"
