"""`whip plugins`: what is loaded, where it comes from, what it does, and how it is set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from whip_core.broker import Broker
from whip_core.broker_options import BROKER_OPTIONS, declare
from whip_core.broker_values import read_plugins
from whip_core.errors import SettingsError
from whip_core.hookspecs import ASKED_BY_AGENTS
from whip_core.options import json_option, log_level_option, option
from whip_core.plugin_host import Described, PluginHost
from whip_core.plugin_sources import AGENT_GROUP, PluginOptions
from whip_core.settings import BrokerSettings

OF_PLUGINS = frozenset(
    f"whip_{name}"
    for name in (
        *("picker", "policy", "outlier_ejection"),  # which of the built-in ones there are
        *("plugins", "no_plugins", "plugin_set"),
    )
)
OPTIONS = tuple(each for each in BROKER_OPTIONS if each.name in OF_PLUGINS)


@click.command()
@json_option
@option("--agent", type=bool, default=False, help="Those of `whip client`, not of a broker.")
@declare(OPTIONS)
@log_level_option
def plugins(as_json: bool, agent: bool, **values: Any) -> None:
    """List the plugins that a broker with these options would have; nothing is started."""
    options = read_plugins(values)
    try:
        found = _of_agent(options) if agent else _of_broker(options, values)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2))
        return
    for line in _table(found):
        click.echo(line)


def _of_broker(options: PluginOptions, values: Mapping[str, Any]) -> list[Described]:
    policy = values["whip_policy"]
    settings = BrokerSettings(
        picker=values["whip_picker"],
        policy=Path(policy).expanduser() if policy else None,
        outlier_ejection=values["whip_outlier_ejection"],
    )
    broker = Broker(
        settings,
        plugins=options.load(),
        plugin_settings=options.read_settings(),
    )
    return broker.plugins.describe()


def _of_agent(options: PluginOptions) -> list[Described]:
    host = PluginHost(ASKED_BY_AGENTS, "an agent")
    for plugin in options.load(AGENT_GROUP):
        host.register(plugin)
    host.configure(options.read_settings())
    return host.describe()


def _table(found: Iterable[Described]) -> list[str]:
    rows = [("NAME", "FROM", "HOOKS")]
    rows += [(each.name, str(each.origin), " ".join(each.hooks)) for each in found]
    names, origins = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:{names}}  {origin:{origins}}  {hooks}" for name, origin, hooks in rows]
    settings = [
        f"{each.name}.{one.key}={one.value}  {one.type}; {one.help or 'no help'} ({one.variable})"
        for each in found
        for one in each.settings
    ]
    return lines + (["", "SETTINGS (--plugin-set)", *settings] if settings else [])
