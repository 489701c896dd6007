"""On whose behalf a dial is made: what mitmproxy knows of the client and its request.

The dial is called deep inside mitmproxy with a host and a port only. Two context variables
tell it the rest. The flow is set in the hooks that come before a connection is opened:
mitmproxy goes on from the task that ran the hook, and the task that it starts for the
connection copies the context. The connection is set in `server_connect`, which runs in
the very task that dials.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Client, Server
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from whip_core.caller import NOBODY, Caller, HttpRequest

# Weak, as a connection's task keeps its context, and that may outlive the flow by hours.
_flow: ContextVar[weakref.ref[HTTPFlow] | None] = ContextVar("whip_flow", default=None)
_connecting: ContextVar[ServerConnectionHookData | None] = ContextVar(
    "whip_connecting", default=None
)


class Callers:
    """The hooks that note what `current` then tells.

    `request_id_header` gives the name of the header that carries a request's id, if any.
    """

    name = "whip.callers"

    def __init__(self, request_id_header: Callable[[], str | None]) -> None:
        self._request_id_header = request_id_header
        self._proven_names: weakref.WeakKeyDictionary[Client, tuple[str, ...]] = (
            weakref.WeakKeyDictionary()
        )

    def requestheaders(self, flow: HTTPFlow) -> None:
        _flow.set(weakref.ref(flow))

    # The body may come in another task than the headers, so the flow is noted twice.
    def request(self, flow: HTTPFlow) -> None:
        _flow.set(weakref.ref(flow))

    def http_connect(self, flow: HTTPFlow) -> None:
        _flow.set(weakref.ref(flow))

    def server_connect(self, data: ServerConnectionHookData) -> None:
        _connecting.set(data)

    def prove_names(self, client: Client, names: tuple[str, ...]) -> None:
        """`client` has shown a certificate for `names`, and it was verified."""
        self._proven_names[client] = names

    def connecting(self) -> tuple[Client | None, Server | None]:
        """The two ends of the connection that the running task opens."""
        data = _connecting.get()
        return (data.client, data.server) if data is not None else (None, None)

    def flow(self) -> HTTPFlow | None:
        """The request that the running task works for."""
        noted = _flow.get()
        return noted() if noted is not None else None

    def proxy_user(self) -> str | None:
        """What `current` tells of the user, and nothing else."""
        client, _ = self.connecting()
        flow = self.flow()
        return _proxy_user(flow, client or (flow.client_conn if flow is not None else None))

    def current(self) -> Caller:
        """Who the running task dials for; `NOBODY` outside of mitmproxy's own work."""
        client, _ = self.connecting()
        flow = self.flow()
        if client is None and flow is None:
            return NOBODY
        if client is None and flow is not None:
            client = flow.client_conn
        return Caller(
            address=_host_and_port(client.peername) if client is not None else None,
            proxy_user=_proxy_user(flow, client),
            certificate_names=self._proven_names.get(client, ()) if client is not None else (),
            request=_request_of(flow) if flow is not None else None,
            request_id=self._request_id(flow),
        )

    def _request_id(self, flow: HTTPFlow | None) -> str | None:
        header = self._request_id_header()
        if flow is None or not header:
            return None
        value: str | None = flow.request.headers.get(header)
        return value or None


def _host_and_port(peername: Any) -> tuple[str, int] | None:
    return (str(peername[0]), int(peername[1])) if peername else None


def _proxy_user(flow: HTTPFlow | None, client: Client | None) -> str | None:
    login = flow.metadata.get("proxyauth") if flow is not None else None
    if login is None and client is not None:
        # SOCKS, and what follows a CONNECT, have it on the connection.
        authentication = ctx.master.addons.get("proxyauth")
        login = getattr(authentication, "authenticated", {}).get(client)
    return login[0] if login else None


def _request_of(flow: HTTPFlow) -> HttpRequest:
    request = flow.request
    headers = {name.lower(): value for name, value in request.headers.items()}
    if "cookie" in headers:
        # HTTP/2 may send each by itself (RFC 9113 §8.2.3); a comma may be part of one.
        headers["cookie"] = "; ".join(request.headers.get_all("cookie"))
    return HttpRequest(
        method=request.method,
        scheme=request.scheme,
        host=request.host,
        path=request.path,
        headers=headers,
    )
