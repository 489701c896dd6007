"""`whip canary`: how to mark a request."""

from __future__ import annotations

import click

from whip_canary.picker import Settings


@click.command()
@click.argument("url")
def canary(url: str) -> None:
    """Print the curl command that asks URL of a canary."""
    click.echo(f"curl --proxy localhost:8080 --header '{Settings().header}: 1' {url}")
