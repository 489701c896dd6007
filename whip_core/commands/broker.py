"""`whip broker`: a broker alone, which other processes dial through."""

from __future__ import annotations

from typing import Any

import click

from whip_core import log_lines
from whip_core.broker import Broker
from whip_core.broker_options import (
    BROKER_OPTIONS,
    DIAL_SOCKET_OPTIONS,
    METRICS_LISTEN,
    chosen,
    declare,
)
from whip_core.broker_values import flags_of, read_broker, read_dial_socket, read_plugins
from whip_core.commands.serving import serve
from whip_core.errors import SettingsError
from whip_core.monitor import listen_address
from whip_core.operating import Listening
from whip_core.options import common_options, run, was_given

# How long a dial waits is for whoever dials to say.
OPTIONS = (
    *(option for option in BROKER_OPTIONS if option.name != "whip_wait"),
    *DIAL_SOCKET_OPTIONS,
)


@click.command()
@common_options(metrics_listen=METRICS_LISTEN)
@declare(OPTIONS)
def broker(log_level: str, **values: Any) -> None:
    """A broker by itself: proxies and programs dial through its --dial-listen socket.

    They use it with --broker ADDRESS, or whip_core.connect in Python, and may come and go
    without an agent noticing.
    """
    log_lines.set_up(log_level)
    spell = flags_of(OPTIONS)
    options = chosen(OPTIONS, values, metrics_given=was_given("metrics_listen"))
    try:
        if not options["whip_dial_listen"]:
            raise SettingsError(
                "give --dial-listen: where others dial through this broker, "
                "such as unix:/run/whip/dial.sock"
            )
        listen_address(values["metrics_listen"])
        plugins = read_plugins(options)
        alone = Broker(
            read_dial_socket(options, read_broker(options, spell), spell),
            plugins=plugins.load(),
            plugin_settings=plugins.read_settings(),
        )
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    listening = Listening(
        values["metrics_listen"], was_given("metrics_listen"), options["whip_control_socket"]
    )
    run(serve(alone, listening), log_level)
