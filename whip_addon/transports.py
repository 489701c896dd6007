"""mitmproxy's table of connections: the one place that knows how it is kept.

mitmproxy has a handler for each of its clients, which has an *end* (a reader, a writer and
the task that reads) for the client's connection and for each of its servers'.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Client, Connection, Server

from whip_core.names import host_port


def handlers() -> dict[str, Any]:
    """The handlers of all clients that are here now, by the clients' ids. It is mitmproxy's own."""
    found: dict[str, Any] = ctx.master.addons.get("proxyserver").connections
    return found


def end_of(client: Client, which: Connection) -> Any | None:
    """The end of `which`, the client itself or one of its servers; None if it is gone.

    None as well where there is no client: a replay has no handler in the table.
    """
    handler = handlers().get(client.id)
    return handler.transports.get(which) if handler is not None else None


def writer_of(client: Client, which: Connection) -> Any | None:
    """The same end's writer; None as well while it is not open."""
    end = end_of(client, which)
    return end.writer if end is not None else None


def place_of(server: Server) -> str:
    """The host and port that a connection leads to, for a message."""
    # The address of an IPv6 socket has two numbers more.
    return host_port(*server.address[:2]) if server.address else "the service"


def note_activity(client: Client) -> None:
    """Tell mitmproxy's idle timer that the client's bytes move, where it does not see them."""
    handler = handlers().get(client.id)
    if handler is not None:
        handler.timeout_watchdog.register_activity()


def hang_up(client: Client, why: str) -> None:
    """End the client's connection as if the client had hung up."""
    end = end_of(client, client)
    if end is not None and end.handler is not None:
        end.handler.cancel(why)
