"""`whip doctor client`: what keeps an agent with these options from being reached.

It registers once at each broker under the agent's name, without a port and draining, so that
it is never picked; where the agent itself is registered, the broker refuses it, which is as
good an answer. A second try at the same name makes the broker ask the first whether it is
alive: that ping carries the broker's clock.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version
from typing import Any

import click

from client_agent import egress_tunnel
from client_agent.command import client as client_command
from client_agent.command import read_settings
from client_agent.control_client import ControlClient, ControlClosed
from client_agent.discovery import Discovery
from client_agent.endpoints import Address, Endpoint
from client_agent.settings import AgentSettings
from whip_core import control, tls
from whip_core.certificates import certificate_names_pem
from whip_core.channel import channel_credentials
from whip_core.checkup import Checkup, Streams, check_certificates, check_machine, check_port
from whip_core.errors import RemoteProtocolError, SettingsError
from whip_core.host_patterns import covers_agent
from whip_core.options import json_option
from whip_core.settings import Role, TLSFiles

DNS_TIMEOUT = 10.0
"""Seconds until a name counts as not found."""
ANSWER_TIMEOUT = 10.0
"""Seconds a broker has to answer a registration, plugins and probes of a name included."""
CLOCK_SKEW = 30.0
"""Seconds that two clocks may differ: certificates are valid in minutes at the least."""


def _options() -> list[click.Parameter]:
    """Those of `whip client`, none of which has to be given but ENDPOINT."""
    options = []
    for each in client_command.params:
        option = copy.copy(each)
        option.required = isinstance(each, click.Argument)
        options.append(option)
    return options


@click.command(params=_options())
@json_option
def client(as_json: bool, **values: Any) -> None:
    """What keeps an agent (whip client) with these options from working."""
    checkup = Checkup()
    check_machine(checkup)
    values["ports"] = values["ports"] or ("1",)  # they do not matter here
    try:
        settings = read_settings(**{**values, "domain": values["domain"] or "unnamed"})
    except (SettingsError, click.UsageError) as error:
        checkup.problem("options", str(error) or error.format_message())  # type: ignore[union-attr]
    else:
        asyncio.run(_Doctor(checkup, settings, named=bool(values["domain"])).check())
    checkup.show(as_json=as_json)


class _Doctor:
    def __init__(self, checkup: Checkup, settings: AgentSettings, *, named: bool) -> None:
        self._checkup = checkup
        self._settings = settings
        self._named = named

    async def check(self) -> None:
        checkup, settings = self._checkup, self._settings
        if settings.tls is not None:
            if not check_certificates(checkup, settings.tls, Role.AGENT):
                return
            self._check_name(settings.tls)
        if settings.egress is not None:
            checkup.ok("egress proxy", f"{settings.egress} is used unless NO_PROXY forbids it")
        for endpoint in settings.endpoints:
            for address in await self._find(endpoint):
                if await self._check_control_port(endpoint, address) and self._named:
                    await self._check_registration(endpoint, address)

    def _check_name(self, files: TLSFiles) -> None:
        name = self._settings.name
        if not self._named:
            return
        if covers_agent(certificate_names_pem(files.cert.read_bytes()), name):
            self._checkup.ok("certificate's name", f"{files.cert} is good for {name}")
        else:
            self._checkup.problem(
                "certificate's name",
                f"{files.cert} is not for {name}, so no broker lets it register in {name.domain}",
                "give the --hostname and --domain it is for, or issue another",
            )

    async def _find(self, endpoint: Endpoint) -> list[Address]:
        egress = self._settings.egress
        if egress is not None and not endpoint.srv and egress.carries(endpoint.host):
            return [Address(endpoint.host, endpoint.port)]
        discovery = Discovery(endpoint, quiet=True)
        self._checkup.doing(f"looking for {endpoint.host}")
        try:
            async with (
                asyncio.timeout(DNS_TIMEOUT),
                aclosing(discovery.watch()) as watching,
            ):
                found = sorted(await anext(watching))
        except TimeoutError:
            self._checkup.problem(
                "name",
                f"{endpoint.host} is not found: {discovery.trouble or 'nobody answers'}",
                "correct ENDPOINT, or see /etc/resolv.conf",
            )
            return []
        addresses = ", ".join(map(str, found))
        self._checkup.ok("name", f"{endpoint} is {len(found)} broker(s): {addresses}")
        return found

    async def _connect(self, host: str, port: int, *, alpn: str | None = None) -> Streams:
        files, egress = self._settings.tls, self._settings.egress
        to: dict[str, Any] = {"host": host, "port": port}
        if egress is not None and egress.carries(host):
            to = {"sock": await egress_tunnel.connect(egress, host, port)}
        if files is None:
            return await asyncio.open_connection(**to)
        context = tls.client_context(files)
        if alpn is not None:
            context.set_alpn_protocols([alpn])
        return await asyncio.open_connection(**to, ssl=context, server_hostname="")

    async def _check_control_port(self, endpoint: Endpoint, address: Address) -> bool:
        return await check_port(
            self._checkup,
            "control port",
            str(address),
            lambda: self._connect(address.ip, address.port, alpn="h2"),
            (endpoint.tls_name,),
            "is the broker up, with this --whip-grpc-listen-port, and no firewall in between?",
        )

    @asynccontextmanager
    async def _control(
        self, endpoint: Endpoint, address: Address, instance_id: str
    ) -> AsyncIterator[ControlClient]:
        settings = self._settings
        credentials = channel_credentials(settings.tls) if settings.tls else None
        egress = settings.egress
        async with egress_tunnel.way_out(egress, address.ip, address.port) as bridge:
            target = bridge.target if bridge else None
            async with ControlClient(
                address, endpoint.tls_name, credentials, target=target
            ) as control_client:
                name = settings.name
                control_client.send(
                    control.Register(
                        name.hostname,
                        name.domain,
                        (),
                        protocol_version=control.PROTOCOL_VERSION,
                        instance_id=instance_id,
                        software_version=version("whip-tunnel"),
                        labels={"whip-doctor": "true"},
                    )
                )
                yield control_client

    async def _check_registration(self, endpoint: Endpoint, address: Address) -> None:
        checkup, name = self._checkup, self._settings.name.full
        checkup.doing(f"registering {name} at {address}")
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT),
                self._control(endpoint, address, secrets.token_hex(8)) as held,
            ):
                answer = await held.receive()
                if not isinstance(answer, control.Registered):
                    checkup.ok("registration", f"{address} is an old broker, and accepts {name}")
                    return
                held.send(control.Draining("whip doctor is never picked"))
                checkup.ok(
                    "registration",
                    f"{address} accepts {name}; it is whip {answer.software_version}",
                )
                async with self._control(endpoint, address, secrets.token_hex(8)):
                    await self._check_clock(held, address)
                await self._check_reverse_port(endpoint, answer)
        except ControlClosed as closed:
            if closed.status == "ALREADY_EXISTS":
                checkup.ok("registration", f"{address}: {closed}; right if that is this agent")
            else:
                checkup.problem("registration", f"{address} refuses {name}: {closed}")
        except TimeoutError:
            checkup.problem("registration", f"{address}: no answer within {ANSWER_TIMEOUT:g} s")
        except RemoteProtocolError as error:
            checkup.problem("registration", f"{address} does not answer as a broker: {error}")

    async def _check_clock(self, held: ControlClient, address: Address) -> None:
        while not isinstance(message := await held.receive(), control.Ping):
            pass
        held.send(control.Pong(message.sequence, message.ping_timestamp, time.time_ns()))
        behind = message.ping_timestamp / 1e9 - time.time()
        text = f"the clock of {address} and ours differ by {abs(behind):.1f} s"
        if abs(behind) > CLOCK_SKEW:
            self._checkup.problem("clock", text, "set both by NTP: certificates depend on it")
        else:
            self._checkup.ok("clock", text)

    async def _check_reverse_port(self, endpoint: Endpoint, told: control.Registered) -> None:
        host, port = told.reverse_host, told.reverse_port
        await check_port(
            self._checkup,
            "reverse port",
            f"{host} port {port}, where the broker has us connect back to,",
            lambda: self._connect(host, port),
            (host, endpoint.tls_name),
            "correct the broker's --whip-external-tcp-address and -port, or the firewall",
        )
