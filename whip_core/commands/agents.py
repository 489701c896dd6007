"""`whip agents`: who is registered at the broker of this machine, and sending one away."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from whip_core import control_call
from whip_core.agent_table import SORT_KEYS
from whip_core.commands.agent_lines import lines
from whip_core.control_call import ControlCallFailed
from whip_core.names import close_matches, is_within, normalize, printable
from whip_core.options import Failure, json_option, log_level_option, option, utf8

VARIABLE = "WHIP_CONTROL_SOCKET"
SORTS = [prefix + key for key in SORT_KEYS for prefix in ("", "-")]

control_socket_option = option(
    "--control-socket",
    metavar="PATH",
    show_default="the running broker's",
    help="The broker's control socket.",
)
search_option = option(
    "--search",
    default="",
    callback=utf8,
    help="Only agents with these words in name, labels or address.",
)
sort_option = option(
    "--sort",
    type=click.Choice(SORTS),
    metavar="COLUMN",
    default="name",
    help=f"One of {', '.join(SORT_KEYS)}; prefix with - to reverse the order.",
)


def _names_like(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """For the shell: the agents there are. It has no place for an error."""
    try:
        path = control_call.find(ctx.params.get("control_socket") or os.environ.get(VARIABLE))
        known = control_call.get(path, "agents")["agents"]
    except ControlCallFailed:
        return []
    return [agent["name"] for agent in known if agent["name"].startswith(incomplete)]


def _names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for name in values:
        try:
            normalize(name)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return values


@click.command()
@search_option
@sort_option
@json_option
@option(
    "--kick",
    metavar="NAME",
    multiple=True,
    callback=_names,
    shell_complete=_names_like,
    help="End this agent's session instead of listing (repeatable). It may come back.",
)
@control_socket_option
@log_level_option
def agents(
    search: str, sort: str, as_json: bool, kick: tuple[str, ...], control_socket: str | None
) -> None:
    """The agents that are registered at the broker that runs here."""
    try:
        path = control_call.find(control_socket)
        if kick:
            _kick(path, kick, as_json)
            return
        table = control_call.get(path, "agents", search=search, sort=sort)
    except ControlCallFailed as error:
        raise Failure(str(error)) from error
    if as_json:
        click.echo(json.dumps(table["agents"], indent=2))
    elif not table["agents"]:
        some = table["total"]
        click.echo(f"none of {some} agents matches" if some else "no agent is registered", err=True)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo("\n".join(lines(table["agents"], width=width)))


def _kick(path: Path, names: tuple[str, ...], as_json: bool) -> None:
    kicked = []
    for name in names:
        try:
            control_call.post(path, "kick", name=name)
        except ControlCallFailed as error:
            if error.status != 404:
                raise
            known = control_call.get(path, "agents")["agents"]
            raise Failure(f"{error}; {_hint(name, known)}") from error
        kicked.append(name)
        if not as_json:
            click.echo(f"kicked {printable(name, 255)}: its session has ended; it may come back")
    if as_json:
        click.echo(json.dumps({"kicked": kicked}))


def _hint(name: str, agents: list[dict[str, Any]]) -> str:
    wanted = normalize(name)
    names = [agent["name"] for agent in agents]
    if members := [each for each in names if is_within(each, [wanted])]:
        return f"it is a domain of {len(members)}: kick one by name, such as {members[0]}"
    if close := close_matches(wanted, names):
        return f"names like it: {', '.join(close)}"
    return f"registered agents: {len(names)}, none with a name like it"
