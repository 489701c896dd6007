"""The commands `whip` and `whiphack`: found by entry point, imported only when used."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, entry_points

import click

GROUP = "whip.commands"


class CommandsByEntryPoint(click.Group):
    """A group whose commands are the entry points of `whip.commands`."""

    def _found(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._found()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        point = self._found().get(name)
        if point is None:
            return super().get_command(ctx, name)
        try:
            command = point.load()
        except ImportError as error:
            return _unavailable(name, error)
        if not isinstance(command, click.Command):
            raise click.ClickException(f"`whip {name}`: {point.value} is no click command")
        return command


def _unavailable(name: str, error: ImportError) -> click.Command:
    """Stands for a command that cannot be imported, and says why when it is called."""

    @click.command(
        name,
        help=f"(not available: {error})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def unavailable() -> None:
        raise click.ClickException(f"`whip {name}` is not available here: {error}")

    return unavailable


@click.group(cls=CommandsByEntryPoint, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="whip-tunnel", prog_name="whip")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Reach private service instances by name, through connections that they open."""
    if os.environ.get("NO_COLOR"):  # no-color.org; click knows of terminals only
        ctx.color = False


class OnlyPKI(CommandsByEntryPoint):
    """Of all commands the one that the helper of old had."""

    def _found(self) -> dict[str, EntryPoint]:
        return {name: point for name, point in super()._found().items() if name == "pki"}


@click.group(cls=OnlyPKI)
@click.version_option(package_name="whip-tunnel", prog_name="whiphack")
def whiphack() -> None:
    """The helper of old: `whiphack pki` is `whip pki`."""
