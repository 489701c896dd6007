"""What is on a terminal's screen, for a browser to draw."""

from __future__ import annotations

import html
import itertools
import re

from pyte import Screen
from pyte.screens import Char
from wcwidth import wcwidth

INK, PAPER = "#dfe8e4", "#16201d"
NAMES = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")
DARK = ("#0f1614", "#e5534b", "#57ab5a", "#c69026", "#539bf5", "#b083f0", "#39c5cf", "#adbac7")
LIGHT = ("#768390", "#ff938a", "#8ddb8c", "#eac55f", "#96d0ff", "#dcbdfb", "#56d4dd", "#ffffff")
COLOURS = dict(zip(NAMES, DARK, strict=True))
COLOURS |= {f"bright{name}": light for name, light in zip(NAMES, LIGHT, strict=True)}


def page_of(screen: Screen, id_: str = "terminal") -> str:
    """The body of a page; the element `id_` is as wide and as high as the screen."""
    lines = [_line(screen, number) for number in range(screen.lines)]
    while lines and not re.sub("<[^>]*>", "", lines[-1]).strip():
        lines.pop()
    text = "\n".join(lines)
    return (
        f"<body style='margin:0;background:{PAPER}'><pre id='{id_}' style='margin:0;padding:12px;"
        f"width:max-content;color:{INK};font:14px/1.35 monospace'>{text}</pre>"
    )


def _line(screen: Screen, number: int) -> str:
    cells = [screen.buffer[number][column] for column in range(screen.columns)]
    return "".join(
        f"<span style='{style}'>{''.join(map(_character, group))}</span>"
        for style, group in itertools.groupby(cells, _style)
    )


def _style(cell: Char) -> str:
    ink, paper = _colour(cell.fg, INK), _colour(cell.bg, PAPER)
    if cell.reverse:
        ink, paper = paper, ink
    parts = [f"color:{ink}", f"background:{paper}"]
    if cell.bold:
        parts.append("font-weight:bold")
    if cell.underscore:
        parts.append("text-decoration:underline")
    return ";".join(parts)


def _colour(name: str, default: str) -> str:
    """pyte has names for the first sixteen, and for the others what they are made of."""
    if name == "default":
        return default
    return COLOURS.get(name, f"#{name}")


def _character(cell: Char) -> str:
    text = html.escape(cell.data)
    if cell.data.isascii():
        return text
    # Another font may bring it, with other widths.
    width = max(wcwidth(cell.data[0]), 1)
    return f"<i style='display:inline-block;font-style:normal;width:{width}ch'>{text}</i>"
