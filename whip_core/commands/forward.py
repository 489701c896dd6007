"""`whip forward`: local ports, of a broker of its own or of another, without mitmproxy."""

from __future__ import annotations

from typing import Any

import click

from whip_core import log_lines
from whip_core.broker import Broker
from whip_core.broker_options import BROKER_OPTIONS, METRICS_LISTEN, REMOTE, chosen, declare
from whip_core.broker_values import flags_of, read_broker, read_plugins, read_remote, read_seconds
from whip_core.commands.serving import serve
from whip_core.errors import SettingsError
from whip_core.forward import ForwardSpec
from whip_core.monitor import listen_address
from whip_core.operating import Listening
from whip_core.options import common_options, run, was_given
from whip_core.remote import RemoteBroker

OPTIONS = (*BROKER_OPTIONS, REMOTE)


@click.command()
@click.argument("forwards", nargs=-1, required=True, metavar="LISTEN:NAME:PORT…")
@common_options(metrics_listen=METRICS_LISTEN)
@declare(OPTIONS)
def forward(forwards: tuple[str, ...], log_level: str, **values: Any) -> None:
    """Local ports that lead to private services: 15432:db1.testdom:5432 and the like.

    LISTEN is a port on loopback, host:port, or unix:/path.
    """
    log_lines.set_up(log_level)
    spell = flags_of(OPTIONS)
    options = chosen(OPTIONS, values, metrics_given=was_given("metrics_listen"))
    try:
        specs = [ForwardSpec.parse(text) for text in forwards]
        remote = read_remote(options, spell)
        listen_address(values["metrics_listen"])
        plugins = read_plugins(options)
        if remote is not None:
            broker: Broker | RemoteBroker = RemoteBroker(remote)
        else:
            broker = Broker(
                read_broker(options, spell),
                plugins=plugins.load(),
                plugin_settings=plugins.read_settings(),
            )
        wait = read_seconds(options, "whip_wait", spell)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    listening = Listening(
        values["metrics_listen"],
        was_given("metrics_listen"),
        options["whip_control_socket"] if remote is None else "",
    )
    run(serve(broker, listening, specs, wait=wait), log_level)
