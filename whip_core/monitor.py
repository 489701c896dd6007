"""The port that Prometheus, an orchestrator and an operator look at. It only reads.

`/metrics`, and `/healthz` and `/readyz` at both ends of the tunnel: healthy is a process
whose event loop answers; ready is one that can do its work, and else says why it cannot.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from whip_core.errors import SettingsError
from whip_core.names import host_port
from whip_core.routes import Handler, Request, Response
from whip_core.sockets import bind
from whip_core.web import WebServer

logger = logging.getLogger(__name__)

Exposition = Callable[[str], tuple[str, bytes]]
"""`Accept` header to content type and body."""
NotReady = Callable[[], str | None]
"""Why it cannot do its work; None if it can."""


def pages(exposition: Exposition, not_ready: NotReady) -> Mapping[str, Handler]:
    """What is at each path, for `Routes`."""

    def metrics(request: Request) -> Response:
        content_type, body = exposition(request.headers.get("accept", ""))
        return Response(body, content_type=content_type)

    def healthz(_: Request) -> Response:
        return Response.text("ok")

    def readyz(_: Request) -> Response:
        why = not_ready()
        return Response.text("ok") if why is None else Response.text(f"not ready: {why}", 503)

    return {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}


def listen_address(listen: str) -> tuple[str, int] | None:
    """Host and port of "host:port" (no host: loopback); None for an empty text.

    Raises `SettingsError` for anything else.
    """
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise SettingsError(f"--metrics-listen {listen!r} is not HOST:PORT, e.g. 127.0.0.1:9464")
    host = host.strip("[]") or "127.0.0.1"
    try:
        host.encode("idna")  # as the socket does, which has no line for it
    except UnicodeError as error:
        raise SettingsError(f"--metrics-listen {listen!r}: {host!r} is not a host") from error
    return host, int(port)


@asynccontextmanager
async def serving(listen: str, answer: Handler, *, chosen: bool) -> AsyncIterator[str | None]:
    """Answer at `listen` ("host:port", empty: not at all) while the block runs.

    Gives the address it got. A port that is taken raises `SettingsError` if the address
    was `chosen`, and is a warning if it is only the default.
    """
    address = listen_address(listen)
    if address is None:
        yield None
        return
    host, port = address
    try:
        sockets = bind([host], port, "choose another --metrics-listen")
    except SettingsError as error:
        why = getattr(error.__cause__, "strerror", None) or error
        problem = f"cannot serve metrics at {listen}: {why}"
        if chosen:
            raise SettingsError(f"{problem}; choose another --metrics-listen") from error
        logger.warning("%s; continuing without metrics (choose with --metrics-listen)", problem)
        yield None
        return
    async with WebServer(answer) as server:
        for sock in sockets:
            server.listen(sock)
        port = sockets[0].getsockname()[1]
        yield host_port(host, port)
