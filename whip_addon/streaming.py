"""What has to flow as it comes, which mitmproxy would hold back until it is complete.

Server-sent events and gRPC never work otherwise, so they are streamed always. Where the
user asks mitmproxy to stream large bodies (`stream_large_bodies`, as `whip proxy` does),
the record of raw TCP and of WebSocket messages is kept to that size too: mitmproxy itself
keeps every byte as long as the connection lasts.
"""

from __future__ import annotations

import weakref
from typing import Any

from mitmproxy import ctx
from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow, Message
from mitmproxy.tcp import TCPFlow
from mitmproxy.utils import human

from whip_addon.fields import values

ENDLESS = (b"text/event-stream", b"multipart/x-mixed-replace")
"""Responses that go on for as long as the client listens."""
BOTH_WAYS = b"application/grpc"
"""Requests and responses that answer each other while both go on (gRPC over HTTP/2 spec)."""


class Streaming:
    name = "whip.streaming"

    def __init__(self) -> None:
        self._recorded: weakref.WeakKeyDictionary[Flow, int] = weakref.WeakKeyDictionary()

    def requestheaders(self, flow: HTTPFlow) -> None:
        if flow.response is None and _content_type(flow.request).startswith(BOTH_WAYS):
            flow.request.stream = flow.request.stream or True

    def responseheaders(self, flow: HTTPFlow) -> None:
        if flow.response is not None and _content_type(flow.response).startswith(
            (*ENDLESS, BOTH_WAYS)
        ):
            flow.response.stream = flow.response.stream or True

    def tcp_message(self, flow: TCPFlow) -> None:
        self._bound(flow, flow.messages)

    def websocket_message(self, flow: HTTPFlow) -> None:
        if flow.websocket is not None:
            self._bound(flow, flow.websocket.messages)

    def _bound(self, flow: Flow, messages: list[Any]) -> None:
        """Forget the older half of a record that is over the limit, never its last message."""
        limit = human.parse_size(ctx.options.stream_large_bodies)
        if limit is None:
            return
        recorded = self._recorded.get(flow, 0) + len(messages[-1].content)
        if recorded > limit:
            forgotten = 0
            while recorded > limit / 2 and forgotten < len(messages) - 1:
                recorded -= len(messages[forgotten].content)
                forgotten += 1
            del messages[:forgotten]
        self._recorded[flow] = recorded


def _content_type(message: Message) -> bytes:
    found = values(message, b"content-type")
    return found[0].strip().lower() if found else b""
