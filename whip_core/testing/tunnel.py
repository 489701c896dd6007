"""A broker on an event loop in another thread, and what is put before and behind it."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whip_core.agents import AgentView
from whip_core.broker import Broker
from whip_core.plugin_settings import PluginSettings
from whip_core.settings import BrokerSettings
from whip_core.testing.asgi import serving
from whip_core.testing.ca import Authority
from whip_core.testing.loop_thread import LoopThread

TIMEOUT = 30.0
"""Seconds that a request or a socket of a test waits, so that it fails and does not hang."""
PING_INTERVAL = 0.2
"""Seconds: a test of what happens at a ping is not to wait for 20."""


@dataclass
class Tunnel:
    """What the fixture `whip_broker` gives. All of it may be called from any thread."""

    broker: Broker
    authority: Authority
    loop: LoopThread = field(repr=False)

    @property
    def agents(self) -> list[AgentView]:
        """The registered agents, as they are now."""

        async def ask() -> list[AgentView]:
            return self.broker.agents

        return self.loop.run(ask())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what has no event of its own. Raises `TimeoutError`."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("it did not come to that")
            time.sleep(0.005)

    def forward(self, name: str, port: int = 80) -> tuple[str, int]:
        """A local address (host, port) that leads there, until the end of the test."""
        address = self.loop.enter(self.broker.forward(name, port))
        assert isinstance(address, tuple)
        return address

    def connect(self, name: str, port: int = 80) -> socket.socket:
        """A blocking socket whose other end is the service. Close it."""
        return socket.create_connection(self.forward(name, port), timeout=TIMEOUT)

    def dial(self, name: str, port: int = 80, **arguments: Any) -> None:
        """Open a stream, and close it at once. Raises what the dial raises, a `DialError`."""

        async def dial() -> None:
            _, writer = await self.broker.open_connection(name, port, **arguments)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        self.loop.run(dial())

    def read(self, name: str, port: int = 80, **arguments: Any) -> bytes:
        """All that the service says to a client that says nothing. Raises as `dial` does."""

        async def read() -> bytes:
            reader, writer = await self.broker.open_connection(name, port, **arguments)
            try:
                writer.write_eof()
                return await reader.read()
            finally:
                writer.close()

        return self.loop.run(read())

    def start_agent(
        self,
        registered: Callable[..., Any],
        service: Any,
        name: str,
        *,
        ports: str = "",
        labels: Mapping[str, str] | None = None,
        plugins: Sequence[object] = (),
        wait: bool = True,
    ) -> RunningAgent:
        """An agent in front of an ASGI application or a port."""
        stack = self.loop.enter(contextlib.AsyncExitStack())
        if service is not None:
            port = self.loop.enter(serving(service)) if callable(service) else int(service)
            ports = ",".join(filter(None, (f"80={port}", ports)))
        agent = registered(
            name,
            self.broker.control_port,
            ports=ports,
            tls=self.authority.client_files(name),
            labels=labels,
            plugins=plugins,
            wait=wait,
        )
        self.loop.run(stack.enter_async_context(agent))
        return RunningAgent(name, self, stack)

    def start_mitmproxy(self, recording: Callable[..., Any]) -> MitmproxyHandle:
        return MitmproxyHandle(self.loop.enter(recording(self.broker)), self.loop)


@dataclass
class RunningAgent:
    """What the fixture `whip_agent` gives for each agent that it starts."""

    name: str
    _tunnel: Tunnel = field(repr=False)
    _stack: contextlib.AsyncExitStack = field(repr=False)

    @property
    def view(self) -> AgentView:
        """It as the broker has it now. Raises `LookupError` if it is not registered."""
        for agent in self._tunnel.agents:
            if agent.name.full == self.name:
                return agent
        raise LookupError(f"{self.name} is not registered")

    def stop(self) -> None:
        """Cut it off, as a machine that goes away."""
        self._tunnel.loop.run(self._stack.aclose())


@dataclass(frozen=True)
class Answer:
    """What a proxy's client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class MitmproxyHandle:
    """What the fixture `whip_mitmproxy` gives."""

    proxy: Any
    loop: LoopThread = field(repr=False)

    @property
    def url(self) -> str:
        """What an HTTP client calls the proxy."""
        return str(self.proxy.url)

    @property
    def flows(self) -> list[Any]:
        """The `mitmproxy.http.HTTPFlow`s that have ended."""
        return list(self.proxy.recorder.flows)

    def wait_for_flows(self, count: int) -> list[Any]:
        """Wait until so many flows have ended."""
        self.loop.run(self.proxy.recorder.until(lambda flows: len(flows) >= count))
        return self.flows

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Fetch it through the proxy. An answer of any status is an answer."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": self.url}))
        request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310
        try:
            response = opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return Answer(response.status, dict(response.headers.items()), response.read())


@contextlib.contextmanager
def running(
    authority: Authority, plugins: Sequence[object] = (), settings: Mapping[str, str] | None = None
) -> Iterator[Tunnel]:
    """A broker over mutual TLS on free ports of loopback; agents and all end with it."""
    with LoopThread() as loop:
        broker = Broker(
            BrokerSettings(
                external_host="localhost",
                listen_host="127.0.0.1",
                tcp_listen_port=0,
                grpc_listen_port=0,
                tls=authority.server_files(),
                ping_interval=PING_INTERVAL,
            ),
            plugins=plugins,
            plugin_settings=PluginSettings(settings or {}),
        )

        loop.enter(broker)
        yield Tunnel(broker, authority, loop)
