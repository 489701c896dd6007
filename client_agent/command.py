"""`whip client`: the agent as a process."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import socket
from typing import Any

import click

from client_agent.agent import Agent
from client_agent.egress import egress_of
from client_agent.endpoints import Endpoint
from client_agent.exposure import parse_exposure
from client_agent.settings import BROKER_COUNT, MAX_BROKERS, AgentSettings
from whip_core import log_lines
from whip_core.errors import SettingsError
from whip_core.host_patterns import dns_pattern
from whip_core.metrics import exposition
from whip_core.monitor import listen_address, pages, serving
from whip_core.names import AgentName, check_labels
from whip_core.options import (
    LABELS,
    PLUGIN_SETTINGS,
    MayBeEmpty,
    common_options,
    option,
    run,
    tls_files,
    was_given,
)
from whip_core.plugin_sources import AGENT_GROUP, PluginOptions
from whip_core.routes import Routes
from whip_core.settings import DRAIN_TIMEOUT, Role
from whip_core.stop_signals import StopSignals
from whip_core.systemd import Notifier, notifying
from whip_core.tls_trial import try_out

logger = logging.getLogger(__name__)


@click.command()
@click.argument("endpoints", nargs=-1, required=True, metavar="ENDPOINT…")
@option("--hostname", default=None, show_default="this host's name", help="Register under it.")
@option("--domain", required=True, help="The domain to register in.")
@option(
    "--ports",
    multiple=True,
    required=True,
    metavar="PORT[=SERVICE]",
    help="What to expose: 5051, 80=5051, 443=10.0.0.7:8443 or 80=unix:/path; "
    "repeatable, or separated by commas.",
)
@option(
    "--label",
    multiple=True,
    separator=LABELS,
    metavar="KEY=VALUE",
    help="A label, e.g. zone=eu; repeatable.",
)
@option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=DRAIN_TIMEOUT,
    help="Seconds that streams have to finish after SIGTERM; a second SIGTERM stops at once.",
)
@option(
    "--broker-count",
    type=click.IntRange(min=0),
    default=BROKER_COUNT,
    help="How many brokers of a fabric to register at (0: all; without a fabric it is all).",
)
@option("--plugin", multiple=True, help="A module, or a file, with plugin hooks (repeatable).")
@option("--no-plugin", multiple=True, metavar="NAME", help="An installed plugin to leave out.")
@option(
    "--plugin-set",
    multiple=True,
    separator=PLUGIN_SETTINGS,
    metavar="PLUGIN.KEY=VALUE",
    help="A plugin's setting (repeatable).",
)
@option(
    "--reverse-host",
    multiple=True,
    metavar="HOST",
    help="A host (*.name: any of one label; an address or network) that brokers may have us "
    "connect back to, besides the endpoint's own and the one each broker tells; repeatable.",
)
@option(
    "--egress-proxy",
    cls=MayBeEmpty,
    metavar="URL",
    help="Reach brokers through this proxy: http://[user:password@]host:port or socks5://… "
    "Without it, HTTPS_PROXY and NO_PROXY count; empty: no proxy.",
)
@option(
    "--max-brokers",
    type=click.IntRange(min=1),
    default=MAX_BROKERS,
    help="Addresses behind one ENDPOINT that are joined.",
)
@common_options(metrics_listen="127.0.0.1:9465")
def client(
    log_level: str,
    plugin: tuple[str, ...],
    no_plugin: tuple[str, ...],
    plugin_set: tuple[str, ...],
    **values: Any,
) -> None:
    """Register this host's service at every broker behind each ENDPOINT (host:port)."""
    log_lines.set_up(log_level)
    try:
        settings = read_settings(**values)
        if settings.tls is not None:
            try_out(settings.tls, Role.AGENT)
        plugins = PluginOptions(plugin, no_plugin, plugin_set)
        agent = Agent(
            settings,
            plugins=plugins.load(AGENT_GROUP),
            plugin_settings=plugins.read_settings(),
        )
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    run(_serve(agent, values["metrics_listen"], was_given("metrics_listen")), log_level)


def read_settings(
    *,
    endpoints: tuple[str, ...],
    hostname: str | None,
    domain: str,
    ports: tuple[str, ...],
    label: tuple[str, ...],
    drain_timeout: float,
    broker_count: int,
    reverse_host: tuple[str, ...],
    egress_proxy: str | None,
    max_brokers: int,
    metrics_listen: str,
    tls: bool,
    tls_key_path: str | None,
    tls_cert_path: str | None,
    tls_ca_cert_path: str | None,
    tls_crl_path: str | None,
    allow_plaintext: bool,
    **_: Any,
) -> AgentSettings:
    """The options' values, checked; raises `SettingsError`."""
    files = tls_files(tls, tls_key_path, tls_cert_path, tls_ca_cert_path, tls_crl_path)
    listen_address(metrics_listen)
    if not math.isfinite(drain_timeout):
        raise SettingsError(f"--drain-timeout: {drain_timeout} is not a number of seconds")
    return AgentSettings(
        name=_name(hostname or socket.gethostname(), domain),
        exposure=parse_exposure(ports),
        endpoints=tuple(Endpoint.parse(text) for text in endpoints),
        tls=files,
        allow_plaintext=allow_plaintext,
        labels=_labels(label),
        drain_timeout=drain_timeout,
        broker_count=broker_count,
        reverse_hosts=_patterns(reverse_host),
        egress=egress_of(egress_proxy, os.environ),
        max_brokers=max_brokers,
    )


async def _serve(agent: Agent, metrics_listen: str, chosen: bool) -> None:
    this = asyncio.current_task()
    assert this is not None

    def slowly() -> None:
        Notifier().tell("STOPPING=1")
        agent.stop()

    def at_once() -> None:
        if not agent.is_quiet:
            logger.warning("stopped at once: streams that still ran are cut")
        this.cancel()

    StopSignals(slowly, at_once).listen()
    agent.plugins.start(agent.metrics.registry)  # what they mind is said before anything listens
    site = Routes(
        pages(lambda accept: exposition(agent.metrics.registry, accept), agent.why_not_ready)
    )
    with contextlib.suppress(asyncio.CancelledError):
        async with (
            serving(metrics_listen, site, chosen=chosen),
            notifying(agent.why_not_ready),
        ):
            await agent.run()


def _name(hostname: str, domain: str) -> AgentName:
    try:
        return AgentName.parse(hostname, domain)
    except ValueError as error:
        raise SettingsError(f"--hostname and --domain: {error}") from error


def _patterns(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_pattern(text) for text in texts)


def _pattern(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_network(text.strip("[]"), strict=False))
    try:
        return dns_pattern(text)
    except ValueError as error:
        raise SettingsError(f"--reverse-host: {error}") from error


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise SettingsError(f"--label {text[:80]!r} is not KEY=VALUE")
        if labels.setdefault(key, value) != value:
            raise SettingsError(f"--label {key[:80]!r} is given twice, with two values")
    try:
        return check_labels(labels)
    except ValueError as error:
        raise SettingsError(f"--label: {error}") from error
