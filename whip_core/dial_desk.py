"""What a broker's dial socket is answered: dials, and the news of its agents and domains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from whip_core.agents import AgentView, DialFinished, StreamClosed
from whip_core.dial import Dial
from whip_core.dial_wire import Ask, Served, encode_agent, encode_news
from whip_core.dialer import Dialer
from whip_core.errors import BrokerClosed
from whip_core.hookspecs import hookimpl
from whip_core.stream import Stream

NEWS_INTERVAL = 0.1
"""Seconds between two bundles of news: what changes often in between is told once."""
BUNDLE = 256
"""Agents told of at once, before the reader has to have taken them."""


class DialDesk:
    """A plugin of the broker's, as it hears there of what changes."""

    whip_name = "dial-socket"

    def __init__(
        self,
        dialer: Callable[[], Dialer],
        agents: Callable[[], Iterable[AgentView]],
        find: Callable[[str], AgentView | None],
        domains: Callable[[], Iterable[str]],
        about: Callable[[], tuple[str, bool]],
        stopping: asyncio.Event,
    ) -> None:
        """`about` gives the broker's id, and whether its dials go by the caller."""
        self._about = about
        self._dialer = dialer
        self._agents = agents
        self._find = find
        self._domains = domains
        self._stopping = stopping
        self._listeners: set[_Listener] = set()

    async def dial(self, ask: Ask) -> tuple[Stream, Served]:
        if self._stopping.is_set():
            raise BrokerClosed(f"{ask.name}:{ask.port}: the broker is shutting down")
        stream = await self._dialer().dial(
            ask.name, ask.port, caller=ask.caller, wait=ask.wait, timeout=ask.timeout
        )
        dial: Dial = stream.get_extra_info("whip")
        assert dial.candidate is not None
        assert dial.asked is not None
        return stream, Served(
            dial=dial.dial_id.hex(),
            asked=dial.asked,
            agent=dial.agent,
            port=dial.candidate.port,
            address=stream.get_extra_info("peername"),
            parked=dial.parked,
            relayed_by=dial.relayed_by,
            resolve_seconds=dial.resolve_seconds,
            pick_seconds=dial.pick_seconds,
            open_seconds=dial.open_seconds or 0.0,
        )

    async def tell_news(self, writer: asyncio.StreamWriter) -> None:
        listener = _Listener()
        self._listeners.add(listener)
        try:
            self._tell_of_broker(writer, listener)
            await self._tell_domains(writer, listener)
            for told, view in enumerate(list(self._agents()), 1):
                writer.write(encode_news("agent", agent=encode_agent(view)))
                if told % BUNDLE == 0:
                    await writer.drain()
            writer.write(encode_news("complete"))
            await writer.drain()
            while True:
                await listener.changed.wait()
                listener.changed.clear()
                self._tell_of_broker(writer, listener)
                await self._tell_domains(writer, listener)
                names, listener.names = listener.names, {}
                for name in names:
                    view_now = self._find(name)
                    if view_now is not None:
                        writer.write(encode_news("agent", agent=encode_agent(view_now)))
                    else:
                        writer.write(encode_news("left", name=name))
                await writer.drain()
                await asyncio.sleep(NEWS_INTERVAL)
        finally:
            self._listeners.discard(listener)

    def _tell_of_broker(self, writer: asyncio.StreamWriter, listener: _Listener) -> None:
        broker_id, by_caller = self._about()
        facts = {"id": broker_id, "by_caller": by_caller, "draining": self._stopping.is_set()}
        if facts != listener.broker:
            listener.broker = facts
            writer.write(encode_news("broker", **facts))

    def draining(self) -> None:
        """The broker has begun to stop."""
        for listener in self._listeners:
            listener.changed.set()

    async def _tell_domains(self, writer: asyncio.StreamWriter, listener: _Listener) -> None:
        for domain in self._domains():
            if domain not in listener.domains:
                listener.domains.add(domain)
                writer.write(encode_news("domain", domain=domain))
        await writer.drain()

    def agent_changed(self, name: str) -> None:
        """Something of the agent of that full name has changed."""
        for listener in self._listeners:
            listener.names[name] = None
            listener.changed.set()

    @hookimpl
    def whip_agent_joined(self, agent: AgentView) -> None:
        self.agent_changed(agent.name.full)

    @hookimpl
    def whip_agent_left(self, agent: AgentView) -> None:
        self.agent_changed(agent.name.full)

    @hookimpl
    def whip_round_trip(self, agent: AgentView) -> None:
        self.agent_changed(agent.name.full)

    @hookimpl
    def whip_stream_opened(self, dial: DialFinished) -> None:
        if dial.agent is not None:
            self.agent_changed(dial.agent.name.full)

    @hookimpl
    def whip_stream_closed(self, stream: StreamClosed) -> None:
        self.agent_changed(stream.agent.full)


class _Listener:
    """One reader of the news, and what it has not been told yet."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.domains: set[str] = set()
        self.broker: dict[str, object] = {}
        self.changed = asyncio.Event()
