"""mitmproxy with a real broker and real agents behind it, in this process, and curl before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mitm import Finished, Proxy, answering, curl, proxy, service
from tunnel import Watch, agent_settings, running
from whip_addon.lifecycle import WhipAddon
from whip_core import Broker, BrokerSettings

FREE_PORTS: dict[str, Any] = {"whip_tcp_listen_port": 0, "whip_grpc_listen_port": 0}


@dataclass
class Tunnel:
    proxy: Proxy
    broker: Broker
    watch: Watch
    for_each: tuple[str, ...] = ()
    """Arguments of curl for each of its requests."""

    @property
    def dialled(self) -> list[str]:
        """The instances in the order in which they were dialled."""
        return [dial.agent.name.hostname for dial in self.watch.dials if dial.agent]

    async def curl(self, *arguments: str) -> Finished:
        # What stands before a --next is forgotten behind it.
        each = ["--proxy", self.proxy.url, "--insecure", *self.for_each]
        given = [part for text in arguments for part in (text, *(each if text == "--next" else ()))]
        finished = await curl(*each, *given)
        assert finished.status == 0, finished.errors
        return finished


@asynccontextmanager
async def tunnel(
    *names: str,
    plugins: Sequence[object] = (),
    scripts: Sequence[object] = (),
    serve: Callable[[str], Any] = lambda name: service(answering(name.encode() + b"\n")),
    labels: Mapping[str, Mapping[str, str]] = {},
    **options: Any,
) -> AsyncIterator[Tunnel]:
    """mitmproxy, a broker, and instances of testdom whose services say who they are."""
    watch = Watch()
    brokers: list[Broker] = []

    def factory(settings: BrokerSettings, _: object) -> Broker:
        brokers.append(Broker(settings, plugins=[watch, *plugins]))
        return brokers[0]

    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(
            proxy(None, *scripts, addon=WhipAddon(factory), **FREE_PORTS, **options)
        )
        for name in names:
            port = await stack.enter_async_context(serve(name))
            settings = agent_settings(
                brokers[0].control_port,
                ports=f"80={port},443={port}",
                hostname=name,
                labels=dict(labels.get(name, {})),
            )
            agent = await stack.enter_async_context(running(settings))
            await agent.wait_registered()
        yield Tunnel(started, brokers[0], watch)


def asking(url: str, *headers: Sequence[str]) -> list[str]:
    """Arguments for curl: one request after the other, over the same connection."""
    arguments: list[str] = []
    for number, given in enumerate(headers):
        arguments += ["--next"] if number else []
        arguments += [url]
        arguments += [part for header in given for part in ("--header", header)]
    return arguments
