"""Which open connection may serve a request, where picking goes by who asks.

mitmproxy keeps its connections to services, and gives a client's next request to the one
that is open to the same address. For `testdom` that is whichever instance the first
request was brought to. So here each connection knows where it leads, and a request that
has to be brought elsewhere does not see it: it gets another one, or a new dial. Neither
does a request of another user of the proxy, whom nobody has authorized yet, nor one for a name
that a person has given to another instance since (`whip.pick`), or has given back.

`GetHttpConnection.connection_spec_matches` is what mitmproxy asks of every connection that
is there; it is wrapped as long as an addon is loaded. mitmproxy has at most 5 connections
to one address for each of its clients, and lets the next one wait; so where instances
change from request to request, the ones that are idle make room.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mitmproxy import version
from mitmproxy.connection import Client, Connection, Server
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy.layers.http import GetHttpConnection
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from whip_addon import transports
from whip_addon.callers import Callers
from whip_addon.pins import Pins
from whip_addon.seam import SeamNotFound
from whip_addon.wrapping import Held, Methods, Wrapping
from whip_core.agents import AgentView, Destination
from whip_core.caller import Caller
from whip_core.errors import DialError

logger = logging.getLogger(__name__)

Matches = Callable[[GetHttpConnection, Connection], bool]

MAX_CONNECTIONS = 5
"""mitmproxy's own bound, for one address and one client (`ConnectionHandler.max_conns`)."""


class Dialled(Protocol):
    """What a stream's `get_extra_info("whip")` tells of where it leads."""

    @property
    def destination(self) -> Destination: ...
    @property
    def agent(self) -> AgentView: ...


class Directs(Protocol):
    """What is asked of a `whip_core.Broker`."""

    @property
    def goes_by_caller(self) -> bool: ...
    def destination(self, host: str, port: int, caller: Caller) -> Destination | None: ...


@dataclass(eq=False)
class _Opened:
    """A connection through whip, and the requests that it has served.

    `asked` is what was dialled for the address: its host, or the instance that had it then.
    """

    dialled: Dialled
    asked: str
    proxy_user: str | None
    flows: weakref.WeakSet[HTTPFlow] = field(default_factory=weakref.WeakSet)
    given_up: bool = False

    @property
    def idle(self) -> bool:
        return not any(flow.live for flow in self.flows)


class Reuse(Held):
    """The hooks, and what is known of the connections that were dialled."""

    name = "whip.reuse"

    def __init__(self, broker: Callable[[], Directs | None], callers: Callers, pins: Pins) -> None:
        super().__init__(_wrapping)
        self._broker = broker
        self._callers = callers
        self._pins = pins
        self._opened: weakref.WeakKeyDictionary[Server, _Opened] = weakref.WeakKeyDictionary()
        self._servers: weakref.WeakKeyDictionary[Client, weakref.WeakSet[Server]] = (
            weakref.WeakKeyDictionary()
        )
        self._waiting: weakref.WeakKeyDictionary[Server, str] = weakref.WeakKeyDictionary()

    def install(self) -> None:
        super().install()
        _loaded.add(self)

    def uninstall(self) -> None:
        _loaded.discard(self)
        super().uninstall()

    def opened(
        self, client: Client, server: Server, dialled: Dialled, asked: str, caller: Caller
    ) -> None:
        """The connection to `server` was dialled for `caller`, who was brought to `asked`."""
        opened = self._opened[server] = _Opened(dialled, asked, caller.proxy_user)
        self._servers.setdefault(client, weakref.WeakSet()).add(server)
        if (flow := self._callers.flow()) is not None and flow.request.method != "CONNECT":
            opened.flows.add(flow)

    def agent_of(self, flow: HTTPFlow) -> AgentView | None:
        """The agent that a request was sent to; None if it was not, but answered by a script."""
        opened = self._opened.get(flow.server_conn)
        return opened.dialled.agent if opened is not None and flow in opened.flows else None

    def may_serve(self, server: Server) -> bool:
        """Whether the request that is being handled may be sent to `server`."""
        opened = self._opened.get(server)
        flow = self._callers.flow()
        if flow is None:
            return True
        if opened is None:
            # Still being dialled, for another request: nobody knows where it will lead.
            asked = self._waiting.get(server)
            return asked is None or (asked == self._asked(server) and not self._has_say(server))
        if opened.given_up or self._callers.proxy_user() != opened.proxy_user:
            return False
        if opened.asked != self._asked(server):
            return False
        wanted = self._wanted(server)
        if wanted is not None and not wanted.admits(opened.dialled.destination):
            return False
        opened.flows.add(flow)
        return True

    def _has_say(self, server: Server) -> bool:
        try:
            return self._wanted(server) is not None
        except DialError:
            return True

    def _wanted(self, server: Server) -> Destination | None:
        broker = self._broker()
        if broker is None or not broker.goes_by_caller or server.address is None:
            return None
        port = server.address[1]
        return broker.destination(self._asked(server), port, self._callers.current())

    def _asked(self, server: Server) -> str:
        """What a dial would ask for now."""
        return self._pins.dialled_as(server.address[0]) if server.address is not None else ""

    # Making room

    def server_connect(self, data: ServerConnectionHookData) -> None:
        self._waiting[data.server] = self._asked(data.server)
        self._servers.setdefault(data.client, weakref.WeakSet()).add(data.server)
        self._make_room(data.client, data.server)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        self._waiting.pop(data.server, None)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        self._waiting.pop(data.server, None)

    def response(self, flow: HTTPFlow) -> None:
        self._finished(flow)

    def error(self, flow: HTTPFlow) -> None:
        self._finished(flow)

    def _finished(self, flow: HTTPFlow) -> None:
        """Let others have the connection, if some wait. The flow is over after its last hook."""
        server = flow.server_conn
        if (
            self._waiting
            and server in self._opened
            and any(other.address == server.address for other in self._waiting)
        ):
            loop = asyncio.get_running_loop()
            loop.call_soon(self._make_room, flow.client_conn, server)

    def _make_room(self, client: Client, new: Server) -> None:
        servers = [
            server
            for server in self._servers.get(client, ())
            if server.address == new.address
            and (server in self._waiting or (server.connected and not self._is_given_up(server)))
        ]
        surplus = len(servers) - MAX_CONNECTIONS
        oldest_first = sorted(servers, key=lambda server: server.timestamp_start or 0.0)
        for server in oldest_first:
            opened = self._opened.get(server)
            if surplus > 0 and opened is not None and server.connected and opened.idle:
                opened.given_up = True
                _close(client, server)
                surplus -= 1

    def _is_given_up(self, server: Server) -> bool:
        opened = self._opened.get(server)
        return opened is not None and opened.given_up


def _close(client: Client, server: Server) -> None:
    writer = transports.writer_of(client, server)
    if writer is not None:
        writer.close()


# mitmproxy's question, answered by every addon that is loaded

_loaded: set[Reuse] = set()


def _asking(connection_spec_matches: Matches) -> Matches:
    def matches(wanted: GetHttpConnection, connection: Connection) -> bool:
        return connection_spec_matches(wanted, connection) and _may_serve(connection)

    return matches


def _may_serve(connection: Connection) -> bool:
    if not isinstance(connection, Server):
        return True
    try:
        return all(reuse.may_serve(connection) for reuse in _loaded)
    except DialError as error:
        # The dial that comes instead fails in the same way, and tells the client.
        logger.debug("no open connection is used: %s", error)
        return False


def _methods() -> Methods:
    # Not passed over, as `Wrapping` would: without it, one user's request could be sent on
    # another's connection.
    if not hasattr(GetHttpConnection, "connection_spec_matches"):
        raise SeamNotFound(f"mitmproxy {version.VERSION} chooses connections in an unknown way")
    return ((GetHttpConnection, "connection_spec_matches", _asking),)


_wrapping = Wrapping(_methods)
