"""Connections that nobody wants to look into, handed from mitmproxy to the relay.

A CONNECT, SOCKS5, reverse:tcp or transparent connection to a host that matches one of
`whip_passthrough` gets a layer that opens the server as mitmproxy does. Once both sides
are open, what mitmproxy has read and not passed on yet is passed on, and the protocols of
both transports are replaced by the two sides of a relay: from there on no byte touches
mitmproxy. When the relay is done, mitmproxy's readers are told of the end, so that its
own bookkeeping, and its log, end as always.

Where TLS lies between us and the client (a proxy reached over TLS), or the connection
goes to an upstream proxy, mitmproxy's own path stays: there is no plain socket to hand on.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import fnmatch
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers import TCPLayer
from mitmproxy.proxy.mode_specs import ReverseMode

from whip_addon import transports
from whip_core.relay import RelaySide, join

logger = logging.getLogger(__name__)

ACTIVITY_INTERVAL = 60.0
"""Seconds between two looks at whether bytes have moved: mitmproxy closes what it has not
seen move for 600 s (`tcp_timeout`)."""


class Passthrough:
    """`patterns` gives the hosts, such as `*.db.testdom` or `db1.testdom:5432`.

    `finished` is told of each connection's end, for the metrics.
    """

    name = "whip.passthrough"

    def __init__(self, patterns: Callable[[], Sequence[str]], finished: Callable[[], None]) -> None:
        self._patterns = patterns
        self._finished = finished
        self._relays: set[_Relay] = set()

    def next_layer(self, data: layer.NextLayer) -> None:
        if data.layer is None and self._applies(data.context):
            data.layer = _PassthroughLayer(data.context, self._hand_over)

    def _applies(self, context: Any) -> bool:
        server: Server = context.server
        mode = context.client.proxy_mode
        return (
            server.address is not None
            and server.via is None
            and server.transport_protocol == "tcp"
            and not (context.client.tls or server.tls)
            and not (isinstance(mode, ReverseMode) and mode.scheme != "tcp")
            and self._matches(*server.address[:2])
        )

    def _matches(self, host: str, port: int) -> bool:
        name = host.lower().removesuffix(".")
        return any(
            fnmatch.fnmatchcase(candidate, pattern.lower())
            for pattern in self._patterns()
            for candidate in (name, f"{name}:{port}")
        )

    def _hand_over(self, client: Client, server: Server, passed: Passed) -> bool:
        """Whether that is decided now; False if it has to be tried again."""
        ends = [transports.end_of(client, each) for each in (client, server)]
        if not all(map(_can_be_handed_over, ends)):
            return True
        if not all(map(_is_at_rest, ends)):
            return False
        self._relays.add(_Relay(ends, client, server, passed, self._done))
        return True

    def _done(self, relay: _Relay) -> None:
        self._relays.discard(relay)
        self._finished()


@dataclass(slots=True)
class Passed:
    """How many octets mitmproxy has passed on itself."""

    to_server: int = 0
    to_client: int = 0

    def count(self, data: bytes, from_client: bool) -> None:
        if from_client:
            self.to_server += len(data)
        else:
            self.to_client += len(data)


class _PassthroughLayer(TCPLayer):
    """A TCP layer that hands its connections over as soon as both are open."""

    def __init__(self, context: Any, hand_over: Callable[[Client, Server, Passed], bool]) -> None:
        super().__init__(context, ignore=True)
        self._hand_over = hand_over
        self._passed = Passed()

    def start(self, event: events.Event) -> Iterator[commands.Command]:
        yield from super().start(event)
        if self.context.server.state is ConnectionState.OPEN:
            # Not from inside this event: what the client has sent already comes first.
            yield commands.RequestWakeup(0)

    _handle_event = start

    def relay_messages(self, event: events.Event) -> Iterator[commands.Command]:
        if not isinstance(event, events.Wakeup):
            if isinstance(event, events.DataReceived):
                self._passed.count(event.data, event.connection is self.context.client)
            yield from super().relay_messages(event)
        elif (
            self.context.client.state is self.context.server.state is ConnectionState.OPEN
            and not self._hand_over(self.context.client, self.context.server, self._passed)
        ):
            yield commands.RequestWakeup(0)  # what it is about to read, it will have read

    def done(self, event: events.Event) -> Iterator[commands.Command]:
        if not isinstance(event, events.Wakeup):
            yield from super().done(event)


class _Counted(RelaySide):
    """A side of the relay that knows how much it has passed on."""

    received = 0
    looks_on = True

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:  # else it comes again, when there is one
            self.received += len(data)
        super().data_received(data)


class _Relay:
    """One connection after its hand-over."""

    def __init__(
        self,
        ends: list[Any],
        client: Client,
        server: Server,
        passed: Passed,
        done: Callable[[_Relay], None],
    ) -> None:
        self._ends = ends
        self._client = client
        self._server = server
        self._passed = passed
        self._peername = client.peername
        self._done = done
        self._protocols = [end.writer.transport.get_protocol() for end in self._ends]
        self._sides = [_Counted.over(end.writer.transport) for end in self._ends]
        for end, side in zip(self._ends, self._sides, strict=True):
            side.receive_first(_take_buffer(end.reader))
        place = transports.place_of(server)
        logger.info("passthrough to %s: handed to the relay", place, extra=self._extra)
        self._seen = -1
        self._watch()
        join(self._sides[0], self._sides[1], self._finished)

    @property
    def _extra(self) -> dict[str, Any]:
        return {"client": self._peername}

    @property
    def _moved(self) -> int:
        return sum(side.received for side in self._sides)

    def _watch(self) -> None:
        """Tell mitmproxy's idle timer of bytes that it does not see."""
        if self._moved != self._seen:
            self._seen = self._moved
            transports.note_activity(self._client)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(ACTIVITY_INTERVAL, self._watch)

    def _finished(self) -> None:
        self._timer.cancel()
        sent, received = (side.received for side in self._sides)
        logger.info(
            "passthrough to %s: closed, %d bytes to it, %d back",
            transports.place_of(self._server),
            self._passed.to_server + sent,
            self._passed.to_client + received,
            extra=self._extra,
        )
        for protocol in self._protocols:
            protocol.connection_lost(None)
        self._done(self)


def _can_be_handed_over(end: Any) -> bool:
    """Not without a transport of asyncio's (WireGuard, local redirect), nor once an end or a
    break has reached the reader: the relay would not be told of it again."""
    if end is None or getattr(end.writer, "transport", None) is None:
        return False
    if end.handler is not None and end.handler.done():
        return False
    return not (end.reader._eof or end.reader.exception() or end.writer.transport.is_closing())


def _is_at_rest(end: Any) -> bool:
    """Whether mitmproxy's task for it waits for something that has not come yet.

    One that has been woken in its `read` must get what it was woken for: with the buffer
    taken from it, it would find nothing, and take that for the end.
    """
    waits_for = getattr(end.handler, "_fut_waiter", None)
    return waits_for is not None and not waits_for.done()


def _take_buffer(reader: Any) -> bytes:
    """What asyncio's reader holds that mitmproxy has not asked for yet."""
    buffer: bytearray = reader._buffer
    taken = bytes(buffer)
    buffer.clear()
    return taken
