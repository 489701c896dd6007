"""mitmproxy with a real broker, and real agents with a service each, in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow
from mitmproxy.tcp import TCPFlow

from mitm import Proxy, proxy
from tunnel import Handler, agent_settings, client_files, running, server_files, service
from whip_addon.lifecycle import WhipAddon
from whip_core import Broker, BrokerSettings
from whip_core.plugin_sources import PluginOptions


class Ended:
    """A user's script that keeps the flows that have ended."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []
        self._news = asyncio.Event()

    async def until(self, count: int) -> None:
        """Wait for that many flows to have ended."""
        while len(self.flows) < count:
            await self._news.wait()

    def _keep(self, flow: Flow) -> None:
        self.flows.append(flow)
        self._news.set()
        self._news = asyncio.Event()

    def response(self, flow: HTTPFlow) -> None:
        self._keep(flow)

    def error(self, flow: HTTPFlow) -> None:
        self._keep(flow)

    def http_connect_error(self, flow: HTTPFlow) -> None:
        self._keep(flow)

    def tcp_end(self, flow: TCPFlow) -> None:
        self._keep(flow)

    def tcp_error(self, flow: TCPFlow) -> None:
        self._keep(flow)


@dataclass
class Fleet:
    proxy: Proxy
    broker: Broker
    ended: Ended

    @property
    def flows(self) -> list[Flow]:
        return self.ended.flows

    def command(self, name: str, *arguments: Any) -> Any:
        """What a command at mitmproxy's prompt gives, with its arguments as they are typed."""
        return self.proxy.master.commands.call_strings(name, list(map(str, arguments)))


@asynccontextmanager
async def fleet(
    services: Mapping[str, Handler | int],
    *scripts: object,
    tls: bool = False,
    mode: Sequence[str] = ("regular",),
    **options: Any,
) -> AsyncIterator[Fleet]:
    """`services` says what each `hostname.domain` serves, or the port of what runs already."""
    brokers: list[Broker] = []

    def factory(settings: BrokerSettings, plugins: PluginOptions) -> Broker:
        brokers.append(Broker(settings))
        return brokers[0]

    ports: dict[str, Any] = {"whip_tcp_listen_port": 0, "whip_grpc_listen_port": 0}
    if tls:
        files = server_files("localhost")
        ports |= {
            "whip_tls": True,
            "whip_tls_key_path": str(files.key),
            "whip_tls_cert_path": str(files.cert),
            "whip_tls_ca_cert_path": str(files.ca),
        }
    ended = Ended()
    async with contextlib.AsyncExitStack() as stack:
        addon = WhipAddon(factory)
        it = await stack.enter_async_context(
            proxy(None, ended, *scripts, addon=addon, mode=mode, **ports | options)
        )
        [broker] = brokers
        for name, served in services.items():
            port = (
                served
                if isinstance(served, int)
                else await stack.enter_async_context(service(served))
            )
            hostname, _, domain = name.partition(".")
            changes: dict[str, Any] = {"tls": client_files(f"*.{domain}")} if tls else {}
            settings = agent_settings(
                broker.control_port, ports=f"{port}", hostname=hostname, domain=domain, **changes
            )
            agent = await stack.enter_async_context(running(settings))
            await agent.wait_registered()
        yield Fleet(it, broker, ended)
