"""A stream that breaks must look broken to the proxy's client, never like an end.

mitmproxy knows one way in which a connection ends, the end of file, and passes it on. For
most protocols that is right, as they see that something is missing. It is not where the
end of the connection *is* the end of the data:

- raw TCP (CONNECT, reverse:tcp): the client's connection is reset;
- WebSocket, where mitmproxy would send a normal closure: the same;
- an HTTP/1 body that ends with its connection: the client is answered 502 if it has got
  nothing of the response yet, else its connection is reset (over HTTP/2, its stream).
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from mitmproxy import flow, http, tcp
from mitmproxy.connection import Client, Server
from mitmproxy.net.http import http1
from mitmproxy.proxy.layer import NextLayer
from mitmproxy.proxy.layers import TCPLayer

from whip_addon import transports
from whip_addon.answers import Answer, plain_response
from whip_addon.fields import values
from whip_core.sockets import abort_with_reset

logger = logging.getLogger(__name__)

Noted = TypeVar("Noted")
ByServer = weakref.WeakKeyDictionary[Server, "weakref.ref[Noted]"]

REASON = "broken-stream"


class WatchedReader:
    """The reader that mitmproxy gets: tells `on_break` of a stream that broke, once.

    `reader` gives what came before a break first, as a `BrokenLastReader` does.
    """

    def __init__(
        self, reader: asyncio.StreamReader, on_break: Callable[[BaseException], None]
    ) -> None:
        self._reader = reader
        self._on_break: Callable[[BaseException], None] | None = on_break

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self, n: int = -1) -> bytes:
        try:
            data = await self._reader.read(n)
        except OSError as error:
            self.report(error)
            raise
        except asyncio.CancelledError:
            # mitmproxy cancels the reading when a write has failed: the break came first.
            if (found := self._reader.exception()) is not None:
                self.report(found)
            raise
        if not data:
            self._on_break = None
        return data

    def report(self, error: BaseException) -> None:
        """Tell of the break, unless the stream has ended or it was told before."""
        on_break, self._on_break = self._on_break, None
        if on_break is not None:
            on_break(error)


class HalfClosingWriter:
    """The writer that mitmproxy gets: where a stream cannot half-close, it closes.

    mitmproxy takes an `OSError` of `write_eof` for a dead connection, and no other error.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        # What mitmproxy calls at every request, found at once.
        self.write, self.drain, self.is_closing = writer.write, writer.drain, writer.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write_eof(self) -> None:
        try:
            self._writer.write_eof()
        except (NotImplementedError, RuntimeError) as error:
            raise OSError(str(error)) from error


class BrokenStreams:
    """The hooks that note which connections carry data without an end of their own."""

    name = "whip.broken"

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[WatchedReader] = weakref.WeakSet()
        # The values are weak as well: a flow holds its server.
        self._pipes: ByServer[flow.Flow] = weakref.WeakKeyDictionary()
        self._layers: ByServer[NextLayer] = weakref.WeakKeyDictionary()
        self._until_end: ByServer[http.HTTPFlow] = weakref.WeakKeyDictionary()
        self._broken: weakref.WeakKeyDictionary[http.HTTPFlow, str] = weakref.WeakKeyDictionary()

    def watch(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        client: Client | None,
        server: Server | None,
    ) -> tuple[WatchedReader, HalfClosingWriter]:
        def on_break(error: BaseException) -> None:
            if client is not None and server is not None:
                self._on_break(client, server, error)

        watched = WatchedReader(reader, on_break)
        self._watched.add(watched)
        return watched, HalfClosingWriter(writer)

    def break_all(self, error: BaseException) -> None:
        """Every stream that has not ended is cut off here and now."""
        for watched in list(self._watched):
            watched.report(error)

    def tcp_start(self, tcp_flow: tcp.TCPFlow) -> None:
        self._pipes[tcp_flow.server_conn] = weakref.ref(tcp_flow)

    def websocket_start(self, http_flow: http.HTTPFlow) -> None:
        self._pipes[http_flow.server_conn] = weakref.ref(http_flow)

    def next_layer(self, data: NextLayer) -> None:
        # For ignored hosts there is no flow; the layer that was chosen tells.
        self._layers[data.context.server] = weakref.ref(data)

    def responseheaders(self, http_flow: http.HTTPFlow) -> None:
        if _ends_with_connection(http_flow):
            self._until_end[http_flow.server_conn] = weakref.ref(http_flow)

    def response(self, http_flow: http.HTTPFlow) -> None:
        if not (self._until_end or self._broken):
            return
        self._until_end.pop(http_flow.server_conn, None)
        text = self._broken.pop(http_flow, None)
        if text is None or http_flow.response is None:
            return
        if not http_flow.response.stream:
            http_flow.error = flow.Error(Answer(text, 502, REASON))
            http_flow.response = plain_response(502, text)
            return
        logger.info("%s", text, extra={"client": http_flow.client_conn.peername})
        # mitmproxy breaks off what has this text for its error; ours says why as well.
        http_flow.error = flow.Error(Answer(flow.Error.KILLED_MESSAGE, 502, REASON))

    def _on_break(self, client: Client, server: Server, error: BaseException) -> None:
        pipe, place = _noted(self._pipes, server), transports.place_of(server)
        if pipe is not None or self._is_ignored_tcp(server):
            if pipe is not None:
                pipe.error = flow.Error(Answer(str(error), 502, REASON))
            logger.info("%s: %s", place, error, extra={"client": client.peername})
            _reset(client)
        elif (http_flow := _noted(self._until_end, server)) is not None:
            self._broken[http_flow] = f"the response of {place} is cut: {error}"
            has_begun = http_flow.response is not None and http_flow.response.stream
            if has_begun and client.alpn != b"h2":
                _reset(client)

    def _is_ignored_tcp(self, server: Server) -> bool:
        decision = _noted(self._layers, server)
        return decision is not None and isinstance(decision.layer, TCPLayer)


def _noted(by_server: ByServer[Noted], server: Server) -> Noted | None:
    reference = by_server.get(server)
    return reference() if reference is not None else None


def _ends_with_connection(http_flow: http.HTTPFlow) -> bool:
    response = http_flow.response
    if (
        response is not None
        and any(values(response, b"content-length"))
        and not values(response, b"transfer-encoding")
    ):
        return False  # nearly always
    try:
        return http1.expected_http_body_size(http_flow.request, response) == -1
    except ValueError:
        return False


def _reset(client: Client) -> None:
    """End the client's connection so that it sees a reset."""
    writer = transports.writer_of(client, client)
    if writer is None:
        return
    transport = getattr(writer, "transport", None)
    if transport is None:  # no socket of its own (WireGuard, local redirect)
        writer.close()
        return
    abort_with_reset(transport)
