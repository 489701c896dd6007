"""The proxy's graceful shutdown: it takes no more clients, and those that it has finish what runs.

From its beginning each HTTP/1 response tells its client that the connection ends with it,
and clients that are idle are hung up on; so they come back somewhere else, and no request
is lost. The same is said, one response long, where an agent is draining: else a connection
that is kept alive would hold on to it.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable

from mitmproxy import ctx
from mitmproxy.connection import Client, Server
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode, UpstreamMode
from mitmproxy.tcp import TCPFlow

from whip_addon.transports import handlers, hang_up

logger = logging.getLogger(__name__)

IDLE = 0.5
"""Seconds without a request after which a client that might send one is hung up on: longer
than what was on its way when we began."""
LOOK_AGAIN = 0.05
"""Seconds between two looks at who is left; mitmproxy has no event for it."""


class Draining:
    """`leaves` tells whether the agent behind a server connection is draining."""

    name = "whip.draining"

    def __init__(self, leaves: Callable[[Server], bool]) -> None:
        self._leaves = leaves
        self._idle_since: weakref.WeakKeyDictionary[Client, float] = weakref.WeakKeyDictionary()
        self._unfinished: weakref.WeakKeyDictionary[Client, set[str]] = weakref.WeakKeyDictionary()
        """The ids of their flows: over HTTP/2 there may be many at a time."""
        self.begun = False

    # Who is idle: it has no request that is not answered, and no tunnel

    def client_connected(self, client: Client) -> None:
        mode = client.proxy_mode
        if isinstance(mode, RegularMode | UpstreamMode) or (
            isinstance(mode, ReverseMode) and mode.scheme in ("http", "https")
        ):
            self._is_idle(client)

    def requestheaders(self, flow: HTTPFlow) -> None:
        self._unfinished.setdefault(flow.client_conn, set()).add(flow.id)
        self._is_busy(flow.client_conn)

    def http_connect(self, flow: HTTPFlow) -> None:
        self._is_busy(flow.client_conn)

    def tcp_start(self, flow: TCPFlow) -> None:
        self._is_busy(flow.client_conn)

    def responseheaders(self, flow: HTTPFlow) -> None:
        # HTTP/2 forbids the header; there it is enough to hang up once the client is idle.
        over_http1 = flow.request.is_http10 or flow.request.is_http11
        ends = self.begun or self._leaves(flow.server_conn)
        if flow.response is not None and over_http1 and ends:
            flow.response.headers["connection"] = "close"

    def response(self, flow: HTTPFlow) -> None:
        if flow.websocket is None:
            self._has_finished(flow)

    def error(self, flow: HTTPFlow) -> None:
        self._has_finished(flow)

    def _has_finished(self, flow: HTTPFlow) -> None:
        unfinished = self._unfinished.get(flow.client_conn, set())
        unfinished.discard(flow.id)
        if not unfinished:
            self._is_idle(flow.client_conn)

    def _is_busy(self, client: Client) -> None:
        self._idle_since.pop(client, None)

    def _is_idle(self, client: Client) -> None:
        self._idle_since[client] = asyncio.get_running_loop().time()

    # The end

    async def drain(self, timeout: float) -> None:
        """Stop listening; come back when the last client has left, or after `timeout` seconds."""
        self.begun = True
        began = asyncio.get_running_loop().time()
        ctx.options.update(server=False)
        try:
            async with asyncio.timeout(timeout):
                while handlers():
                    self._hang_up_on_idle(began)
                    await asyncio.sleep(LOOK_AGAIN)
        except TimeoutError:
            logger.warning(
                "%d clients did not finish within %g s and are cut", len(handlers()), timeout
            )

    def _hang_up_on_idle(self, began: float) -> None:
        now = asyncio.get_running_loop().time()
        for client in [handler.client for handler in handlers().values()]:
            since = self._idle_since.get(client)
            if since is not None and now - max(since, began) >= IDLE:
                hang_up(client, "the proxy is stopping")


def on_signal(number: int, call: Callable[[], None]) -> None:
    """Have `call` called on each such signal: SIGTERM ends mitmproxy at once by itself.

    Does nothing where this loop has no signals (mitmproxy in a thread, in a test).
    """
    try:
        asyncio.get_running_loop().add_signal_handler(number, call)
    except (NotImplementedError, ValueError, RuntimeError):
        logger.debug("this event loop has no signals")
