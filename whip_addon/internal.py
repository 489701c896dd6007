"""http://whip.internal/: the broker's status page, for whoever is let into the proxy.

It is a connection like any other to mitmproxy, opened at the seam, but with nothing behind
it that any network reaches; the name is never looked up.
"""

from __future__ import annotations

import asyncio
from typing import Any

from whip_core.errors import ServiceRefused
from whip_core.status import INTERNAL_HOST
from whip_core.web import WebServer

HOST = INTERNAL_HOST
PORT = 80
AGENTS = "/api/agents"
"""Where programs read who is registered."""


def is_internal(host: str) -> bool:
    return host.lower().removesuffix(".") == HOST


async def connect(
    server: WebServer, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As `asyncio.open_connection`. Raises `ServiceRefused` for another port than HTTP's."""
    if port != PORT:
        raise ServiceRefused(f"{HOST}:{port}: the status page is http://{HOST}/")
    reader, writer = await server.connect()
    return reader, _Named(writer, reader)


class _Named(asyncio.StreamWriter):
    """Has an address to show, which mitmproxy wants of every connection."""

    def __init__(self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        transport: Any = writer.transport
        super().__init__(transport, transport.get_protocol(), reader, asyncio.get_running_loop())
        self._first = writer  # it would close the transport if it were let go

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name in ("peername", "sockname"):
            return HOST, PORT
        return super().get_extra_info(name, default)
