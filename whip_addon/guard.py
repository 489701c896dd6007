"""What must not get out, checked once more around the seam: it fails closed everywhere.

- While whip has trouble, no client and no connection gets through.
- UDP (QUIC, DNS) does not pass the seam: it follows the same rules here.
- In mitmproxy's upstream mode, whip's names are not handed to the upstream proxy.
- A TCP connection that was not opened by the dial (a mitmproxy that connects in another
  way than the seam knows) is killed before a byte is sent.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mitmproxy import http
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.mode_specs import UpstreamMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from whip_addon import transports
from whip_addon.answers import plain_response
from whip_addon.routing import ALLOW_HINT, Route
from whip_core.names import host_port

logger = logging.getLogger(__name__)


class Guard:
    """`trouble`: why nothing may pass, `way`: where a host may go, `has_dialled`: who opened it."""

    name = "whip.guard"

    def __init__(
        self,
        trouble: Callable[[], str | None],
        way: Callable[[str, int], Route],
        has_dialled: Callable[[Server], bool],
    ) -> None:
        self._trouble = trouble
        self._way = way
        self._has_dialled = has_dialled

    def client_connected(self, client: Client) -> None:
        if trouble := self._trouble():
            client.error = trouble

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self._keep_from_upstream(flow)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        self._keep_from_upstream(flow)

    def server_connect(self, data: ServerConnectionHookData) -> None:
        if trouble := self._trouble():
            data.server.error = trouble
        elif data.server.transport_protocol == "udp" and data.server.address:
            host, port, *_ = data.server.address
            way = self._way(host, port)
            if way is Route.WHIP:
                data.server.error = f"{host} is whip's, and whip carries TCP only"
            elif way is not Route.DIRECT:
                data.server.error = f"{host_port(host, port)} is not whip's; {ALLOW_HINT}"

    def server_connected(self, data: ServerConnectionHookData) -> None:
        server = data.server
        if server.transport_protocol != "tcp" or not server.address or self._has_dialled(server):
            return
        host, port, *_ = server.address
        if self._way(host, port) is Route.DIRECT:
            return
        server.error = f"killed: mitmproxy connected to {host_port(host, port)} without whip"
        logger.error("%s; this mitmproxy needs another version of whip", server.error)
        _kill(data.client, server)

    def _keep_from_upstream(self, flow: http.HTTPFlow) -> None:
        request = flow.request
        if (
            flow.response is None
            and isinstance(flow.client_conn.proxy_mode, UpstreamMode)
            and self._way(request.host, request.port) is Route.WHIP
        ):
            flow.response = plain_response(
                502,
                f"{request.host} is whip's, and is not sent to the upstream proxy: "
                "reach it through a listener in regular mode",
            )


def _kill(client: Client, server: Server) -> None:
    """Close the connection to `server` now, so that nothing can be written to it."""
    writer = transports.writer_of(client, server)
    if writer is None:
        # A replay, say: ending the task that opened it is all that is left.
        raise asyncio.CancelledError(server.error)
    writer.close()
