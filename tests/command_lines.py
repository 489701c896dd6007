"""Command lines of whip's, as they stand in recipes and docs, given to its own parser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import click

from whip_core.cli import main, whiphack

PROGRAMS = {"whip": main, "whiphack": whiphack}


def parse(arguments: Sequence[str]) -> click.Context:
    """Parse a command line, and do nothing. Raises `click.UsageError` as the command would."""
    program, *rest = arguments
    command: click.Command = PROGRAMS[program]
    context = click.Context(command, info_name=program)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, list(rest))
        assert found is not None
        context = found.make_context(name, list(rest), parent=context)
        # click 8 keeps the first of what is left apart, and says not to look.
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        command = found
    return context


def in_shell(text: str) -> Iterator[list[str]]:
    """The words of each of whip's commands in a shell script, without what is around them."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = line.strip().removeprefix("$ ").removeprefix("exec ")
        line = re.sub(r"^(\w+=\S*\s+)+", "", line)
        if line.split(" ")[0] in PROGRAMS:
            words = shlex.split(line, comments=True)
            ends = [words.index(end) for end in ("|", "&", "&&", ";", ">") if end in words]
            yield words[: min(ends, default=len(words))]
