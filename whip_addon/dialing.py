"""The dial at the seam: routes a connection, and opens it."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from mitmproxy.connection import Server

from whip_addon.answers import Answer, DialFailed
from whip_addon.broken import BrokenStreams
from whip_addon.callers import Callers
from whip_addon.facts import INSTANCE, Facts, facts_of
from whip_addon.faults import Faults
from whip_addon.faulty import FaultyStream
from whip_addon.internal import connect, is_internal
from whip_addon.labels import Labels
from whip_addon.pins import Pins
from whip_addon.reuse import Directs, Reuse
from whip_addon.routing import ALLOW_HINT, Route, route
from whip_core.agents import DialFinished
from whip_core.caller import Caller
from whip_core.dial import Dial
from whip_core.errors import DialError, UnknownName
from whip_core.names import host_port
from whip_core.remote_dial import RemoteDial
from whip_core.web import WebServer

logger = logging.getLogger(__name__)

DIAL = "whip"
"""The extra information of a broker's stream that tells of its dial."""


class Dials(Directs, Protocol):
    """What the dial needs of a `whip_core.Broker`."""

    @property
    def broker_id(self) -> str: ...
    def routes(self, host: str) -> bool: ...
    def resolves(self, host: str, port: int, caller: Caller) -> bool: ...

    async def open_connection(
        self, host: str, port: int, *, caller: Caller, wait: float = 0.0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


class NotWhips(DialError):
    """Not reached through whip, and fallback does not let it out."""

    reason = "not-whips"


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that a dial follows; they may change between two dials."""

    fallback: bool = False
    wait: float = 0.0
    upstreams: Collection[tuple[str, int]] = ()


class Dialer:
    """`dial` is what the seam calls. `broker` waits until there is one, or raises DialError."""

    def __init__(
        self,
        broker: Callable[[], Awaitable[Dials]],
        rules: Callable[[], Rules],
        callers: Callers,
        broken: BrokenStreams,
        reuse: Reuse,
        labels: Labels,
        pins: Pins,
        faults: Faults,
        status_page: Callable[[], WebServer | None] = lambda: None,
    ) -> None:
        self._broker = broker
        self._status_page = status_page
        self._rules = rules
        self._callers = callers
        self._broken = broken
        self._reuse = reuse
        self._labels = labels
        self._pins = pins
        self._faults = faults
        self._dialled: weakref.WeakKeyDictionary[Server, Any] = weakref.WeakKeyDictionary()

    async def dial(
        self, host: str, port: int, local_addr: tuple[str, int] | None
    ) -> tuple[Any, Any]:
        """As `asyncio.open_connection`; every failure is an `OSError`."""
        try:
            return await self._open(host, port, local_addr)
        except OSError:
            await _let_mitmproxy_begin()
            raise
        except Exception as error:
            await _let_mitmproxy_begin()
            # mitmproxy takes nothing but an OSError here: its client would wait for ever.
            logger.exception("dial of %s failed unexpectedly", host_port(host, port))
            raise DialFailed(
                Answer.to(DialError(f"cannot dial {host_port(host, port)}: {error}"))
            ) from error

    def has_dialled(self, server: Server) -> bool:
        """Whether the connection to `server` was opened here."""
        return server in self._dialled

    def agent_leaves(self, server: Server) -> bool:
        """Whether the connection to `server` is a stream to an agent that is draining."""
        writer = self._dialled.get(server)
        dial = writer.get_extra_info("whip") if writer is not None else None
        return dial is not None and bool(dial.agent_leaves)

    async def _open(
        self, host: str, port: int, local_addr: tuple[str, int] | None
    ) -> tuple[Any, Any]:
        rules = self._rules()
        hint, broker_id = "", ""
        try:
            broker = await self._broker()
            broker_id = broker.broker_id
            if is_internal(host) and (page := self._status_page()) is not None:
                opened: tuple[Any, Any] = await connect(page, port)
                self._mark(None)
                return opened
            way = route(
                host,
                port,
                ours=broker.routes,
                fallback=rules.fallback,
                upstreams=rules.upstreams,
                resolved=lambda name, at: broker.resolves(name, at, self._callers.current()),
            )
            if way is Route.REFUSE:
                raise NotWhips(
                    f"{host_port(host, port)}: whip reaches names, not addresses; {ALLOW_HINT}"
                )
            if way is Route.DIRECT:
                opened = await asyncio.open_connection(host, port, local_addr=local_addr)
                self._mark(None)
                return opened
            hint = ALLOW_HINT if way is Route.ASK else ""
            caller, asked = self._callers.current(), self._pins.dialled_as(host)
            opened = await broker.open_connection(asked, port, caller=caller, wait=rules.wait)
        except UnknownName as error:
            raise DialFailed(Answer.to(error, hint, _facts(error.dial, broker_id))) from error
        except DialError as error:
            raise DialFailed(Answer.to(error, facts=_facts(error.dial, broker_id))) from error
        self._mark(opened[1])
        client, server = self._callers.connecting()
        dialled = opened[1].get_extra_info(DIAL)
        if client is not None and server is not None and dialled is not None:
            self._reuse.opened(client, server, dialled, asked, caller)
        facts = _facts(dialled, broker_id)
        if facts is not None:
            if server is not None:
                self._labels.dialled(server, facts)
            faulty = FaultyStream(self._faults, str(facts[INSTANCE]), *opened)
            opened = faulty.reader, faulty.writer
        return self._broken.watch(*opened, client=client, server=server)

    def _mark(self, writer: asyncio.StreamWriter | None) -> None:
        _, server = self._callers.connecting()
        if server is not None:
            self._dialled[server] = writer


async def _let_mitmproxy_begin() -> None:
    """Before an error that may have taken no time at all, as none of asyncio's own does.

    mitmproxy answers it by cancelling the task that handles its client. One that has not had
    its first step yet would never run: nobody closed the client's connection then.
    """
    await asyncio.sleep(0)


def _facts(dial: object, broker_id: str) -> Facts | None:
    if isinstance(dial, Dial | RemoteDial):
        dial = dial.finished(None)
    return facts_of(dial, broker_id) if isinstance(dial, DialFinished) else None
