"""The commands `whip` and `whiphack`: found by entry point, imported only when used."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import IO, Any

import click

GROUP = "whip.commands"
DISTRIBUTION = "whip-tunnel"
OPTIONAL = {"mitmproxy": "proxy"}
"""What a plain install does without, and the extra that brings it."""


class CommandsByEntryPoint(click.Group):
    """A group whose commands are the entry points of `entry_point_group`."""

    entry_point_group = GROUP

    def main(self, *args: Any, **extra: Any) -> Any:
        """As click's, but that output which cannot be written is told in one line."""
        if sys.stdout is None:
            sys.stdout = _Closed()
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if not _was_output(error):
                raise
            # What it still holds would be tried once more at the very end.
            sys.stdout = None  # as Python itself has it then
            click.echo(f"Error: cannot write the output: {error.strerror or error}", err=True)
            sys.exit(1)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)

    def _found(self) -> dict[str, EntryPoint]:
        points = entry_points(group=self.entry_point_group)
        own = (point for point in points if point.dist and point.dist.name == DISTRIBUTION)
        # Last, so that no other package's command can stand in the place of one of ours.
        return {point.name: point for point in (*points, *own)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._found()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        point = self._found().get(name)
        if point is None:
            return super().get_command(ctx, name)
        try:
            command = point.load()
        except Exception as error:  # noqa: BLE001  # somebody else's code may raise anything
            why = f"{_origin(point)}{str(error) or type(error).__name__}"
            if isinstance(error, ModuleNotFoundError) and (extra := _extra_with(error.name)):
                why += f": pip install '{DISTRIBUTION}[{extra}]'"
            return _unavailable(name, why)
        if not isinstance(command, click.Command):
            return _unavailable(name, f"{_origin(point)}{point.value} is not a click command")
        return command


class WrongCall(click.UsageError):
    """A wrong call, told in one line; click's own adds three of usage and advice."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.ClickException.show(self, file)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn click's errors about how it was called into ours."""
    try:
        yield
    except click.UsageError as error:
        if type(error).show is not click.UsageError.show:  # ours, or help, which has many lines
            raise
        text = " ".join(error.format_message().split())
        context = error.ctx
        if context is not None and context.command.get_help_option(context) is not None:
            text = f"{text.removesuffix('.')} (see: {context.command_path} --help)"
        raise WrongCall(text, context) from error


class _Closed(io.TextIOBase):
    """Stands for a standard output that was closed before we began (`>&-`)."""

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


def _was_output(error: OSError) -> bool:
    """Whether it was writing to a standard stream that failed: click does that in one place."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ends = (click.echo.__code__, _Closed.write.__code__)
    return frames[-1].f_code in ends


def _extra_with(module: str | None) -> str | None:
    return OPTIONAL.get((module or "").partition(".")[0])


def _origin(point: EntryPoint) -> str:
    """Whose command it is, if it is not ours."""
    if point.dist is None or point.dist.name == DISTRIBUTION:
        return ""
    return f"{point.dist.name} {point.dist.version}: "


def _unavailable(name: str, why: str) -> click.Command:
    """Stands for a command that cannot be imported, and says why when it is called."""
    why = " ".join(why.split())

    @click.command(
        name,
        help=f"(not available: {why})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def unavailable() -> None:
        raise click.ClickException(f"`whip {name}` is not available here: {why}")

    return unavailable


@click.group(cls=CommandsByEntryPoint, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="whip")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Reach private service instances by name, through connections that they open."""
    if os.environ.get("NO_COLOR"):  # no-color.org; click knows of terminals only
        ctx.color = False


class OnlyPKI(CommandsByEntryPoint):
    """Of all commands the one that the old helper had."""

    def _found(self) -> dict[str, EntryPoint]:
        return {name: point for name, point in super()._found().items() if name == "pki"}


@click.group(cls=OnlyPKI)
@click.version_option(package_name=DISTRIBUTION, prog_name="whiphack")
def whiphack() -> None:
    """The old helper: `whiphack pki` is `whip pki`."""
