"""`whip top`: the agents of the broker that runs here, live."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click

from whip_core import control_call
from whip_core.commands.agent_lines import COLUMNS, Agent, Column, human_age, human_bytes, lines
from whip_core.commands.agents import (
    control_socket_option,
    search_option,
    sort_option,
)
from whip_core.control_call import ControlCallFailed
from whip_core.options import Failure, Seconds, json_option, log_level_option, option

LEAST_INTERVAL = 0.1
"""Seconds between two looks: more often shows nothing more, and costs the broker."""
MOST_INTERVAL = 86400.0
"""A day: nobody looks more rarely, and some systems cannot sleep for years."""
HEAD_LINES = 3
SORT_BY_KEY = {
    "n": "name",
    "s": "-streams",
    "l": "-round_trip",
    "i": "-to_agent",
    "o": "-from_agent",
    "p": "-parked",
    "a": "-since",
}
"""What a pressed key sorts by."""
KEYS = "q quit  n name  s streams  l latency  i to agent  o from agent  p parked  a age"

ENTER = "\x1b[?1049h\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME = "\x1b[H"
CLEAR_LINE = "\x1b[K"
CLEAR_BELOW = "\x1b[J"


@dataclass(slots=True)
class Rates:
    """Bytes a second, from what two looks at the same agents tell."""

    _at: float = 0.0
    _counts: dict[tuple[str, float], tuple[int, int]] = field(default_factory=dict)
    _rates: dict[tuple[str, float], tuple[int | None, int | None]] = field(default_factory=dict)

    def add_to(self, agents: list[dict[str, Any]], at: float) -> None:
        """Give each agent `rate_to_agent` and `rate_from_agent`; None the first time.

        `at` is when the broker looked, in seconds; for a caller that soon asks again, the same.
        """
        if at != self._at:
            self._look(agents, at)
        for agent in agents:
            rates = self._rates.get(_registration(agent), (None, None))
            agent["rate_to_agent"], agent["rate_from_agent"] = rates

    def _look(self, agents: list[dict[str, Any]], at: float) -> None:
        seconds, before = at - self._at, self._counts
        self._at, self._counts, self._rates = at, {}, {}
        for agent in agents:
            key = _registration(agent)
            counts = self._counts[key] = (agent["bytes_to_agent"], agent["bytes_from_agent"])
            if key in before and seconds > 0:
                to_agent, from_agent = before[key]
                self._rates[key] = (
                    max(0, round((counts[0] - to_agent) / seconds)),
                    max(0, round((counts[1] - from_agent) / seconds)),
                )


def _registration(agent: Agent) -> tuple[str, float]:
    return agent["name"], agent["since"]


def _rate(name: str) -> Column:
    def text(agent: Agent) -> str:
        rate = agent[f"rate_{name}_agent"]
        return "-" if rate is None else f"{human_bytes(rate)}/s"

    return Column(f"{name.upper()}/S", text, is_number=True)


TOP_COLUMNS = (*COLUMNS[:4], _rate("to"), _rate("from"), *COLUMNS[4:])


@click.command()
@search_option
@sort_option
@option(
    "--interval",
    type=Seconds(min=LEAST_INTERVAL, max=MOST_INTERVAL),
    default=1.0,
    metavar="SECONDS",
    help="How often to look.",
)
@option(
    "--count",
    type=click.IntRange(min=1),
    default=None,
    show_default="until it is ended",
    help="How many times in all.",
)
@json_option
@control_socket_option
@log_level_option
def top(
    search: str,
    sort: str,
    interval: float,
    count: int | None,
    as_json: bool,
    control_socket: str | None,
) -> None:
    """What the agents do right now. On a terminal, keys sort and q quits.

    With --json, or where the output is not a terminal, one look follows another; as JSON
    each is one line.
    """
    watch = _Watch(control_socket, search, sort)
    try:
        if as_json or not sys.stdout.isatty():
            _follow(watch, interval, count, as_json)
        else:
            _show(watch, interval, count)
    except ControlCallFailed as error:
        raise Failure(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read has enough, as in `whip top | head`. Nothing is left to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(slots=True)
class _Watch:
    chosen: str | None
    search: str
    sort: str
    rates: Rates = field(default_factory=Rates)

    def look(self, limit: int | None = None) -> Mapping[str, Any]:
        """What there is now. Raises `ControlCallFailed`."""
        path: Path = control_call.find(self.chosen)
        arguments = {"limit": str(limit)} if limit else {}
        state = control_call.get(path, "broker")
        table = control_call.get(path, "agents", search=self.search, sort=self.sort, **arguments)
        self.rates.add_to(table["agents"], table["at"])
        return {"broker": state, **table}


def _looks(count: int | None) -> Iterable[int]:
    return itertools.count() if count is None else range(count)


def _follow(watch: _Watch, interval: float, count: int | None, as_json: bool) -> None:
    for number in _looks(count):
        if number:
            time.sleep(interval)
        look = watch.look()
        if as_json:
            click.echo(json.dumps(look))
        else:
            text = [_summary(look), *lines(look["agents"], TOP_COLUMNS)]
            click.echo("\n".join([*([""] if number else []), *text]))
        sys.stdout.flush()


def _summary(look: Mapping[str, Any]) -> str:
    broker = look["broker"]
    state = "ready" if broker["not_ready"] is None else broker["not_ready"]
    return (
        f"broker {broker['broker'][:8]} ({broker['version']}), up {human_age(broker['since'])}, "
        f"{state}: {broker['agents']} agents in {broker['domains']} domains, "
        f"{broker['streams']} streams, {broker['parked']} parked"
    )


def _show(watch: _Watch, interval: float, count: int | None) -> None:
    """Redraw the whole screen at each look, until q is pressed."""
    watch.look(1)  # fails here, where it can be told in one line
    with _screen():
        for _ in _looks(count):
            until = time.monotonic() + interval
            while True:
                _draw(watch)
                key = _key_until(until)
                if key in ("q", "\x03"):
                    return
                if key is None:
                    break
                watch.sort = _toggled(watch.sort, SORT_BY_KEY.get(key, watch.sort))


def _toggled(sort: str, chosen: str) -> str:
    """The same key again reverses the order."""
    if sort != chosen:
        return chosen
    return chosen[1:] if chosen.startswith("-") else f"-{chosen}"


def _draw(watch: _Watch) -> None:
    size = shutil.get_terminal_size()
    try:
        look = watch.look(max(1, size.lines - HEAD_LINES - 1))
        text = [
            _summary(look),
            f"{KEYS}  (sorted by {watch.sort}, {look['matching']} match)",
            "",
            *lines(look["agents"], TOP_COLUMNS, width=size.columns),
        ]
    except ControlCallFailed as error:
        text = [str(error), "retrying; press q to quit"]
    text = text[: size.lines]
    if os.environ.get("NO_COLOR"):
        text = list(map(click.unstyle, text))
    cut = [line if "\x1b" in line else line[: size.columns] for line in text]
    sys.stdout.write(HOME + "\r\n".join(line + CLEAR_LINE for line in cut) + CLEAR_BELOW)
    sys.stdout.flush()


def _key_until(moment: float) -> str | None:
    """The key that is pressed before `moment`; None if none is."""
    left = moment - time.monotonic()
    if left <= 0 or not sys.stdin.isatty():
        time.sleep(max(0.0, left))
        return None
    ready, _, _ = select.select([sys.stdin], [], [], left)
    return os.read(sys.stdin.fileno(), 1).decode("ascii", "replace") if ready else None


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, keys unbuffered; however it ends, all is put back."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ends = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, leave) for number in ends}
    saved = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if saved is not None:
            tty.setcbreak(sys.stdin)
        sys.stdout.write(ENTER)
        yield
    finally:
        with contextlib.suppress(OSError):  # the terminal itself may be gone
            sys.stdout.write(LEAVE)
            sys.stdout.flush()
            if saved is not None:
                termios.tcsetattr(sys.stdin, termios.TCSANOW, saved)  # it may take no output
        for number, handler in before.items():
            signal.signal(number, handler)
