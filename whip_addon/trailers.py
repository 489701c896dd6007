"""Trailers of HTTP/1 messages end where they meet mitmproxy, and hang nobody.

mitmproxy 11 and 12 raise `NotImplementedError` at the trailers of a chunked body, and fail an
assertion at those that an HTTP/2 peer sends to an HTTP/1 one. Both connections then wait
until mitmproxy's own ten minutes are over, with whip or without it. RFC 9110 (§6.5.1) lets an
intermediary discard what it cannot forward, so that is done: the message arrives whole, without
them. Between HTTP/2 peers, as in gRPC, trailers pass as ever.

A mitmproxy that can do better is left alone.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._events import RequestTrailers, ResponseTrailers

from whip_addon.wrapping import Held, Methods, Wrapping

UNABLE = "HTTP trailers are not implemented"
"""How a mitmproxy says that it cannot read them (mitmproxy/proxy/layers/http/_http1.py)."""


TRAILERS = (RequestTrailers, ResponseTrailers)


class _WithoutTrailers:
    """h11's reader of a chunked body, whose end has no headers."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __call__(self, received: Any) -> Any:
        event = self._reader(received)
        return type(event)() if getattr(event, "headers", None) else event

    def read_eof(self) -> Any:
        return self._reader.read_eof()


def _reading_none(make_body_reader: Callable[..., Any]) -> Callable[..., Any]:
    chunked = getattr(_http1, "ChunkedReader", object)  # or whatever reads

    def make(*arguments: Any) -> Any:
        reader = make_body_reader(*arguments)
        return _WithoutTrailers(reader) if isinstance(reader, chunked) else reader

    return make


def _sending_none(handle_event: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    # No generator itself: each command of every message would pass through it.
    def handle(connection: Any, event: Any) -> Iterator[Any]:
        return _nothing() if isinstance(event, TRAILERS) else handle_event(connection, event)

    return handle


def _nothing() -> Iterator[Any]:
    yield from ()


def _is_unable(connection: Any) -> bool:
    code = getattr(getattr(connection, "read_body", None), "__code__", None)
    return any(UNABLE in str(constant) for constant in getattr(code, "co_consts", ()))


def _methods() -> Methods:
    connection = getattr(_http1, "Http1Connection", None)
    if not _is_unable(connection):
        return ()
    return (
        (_http1, "make_body_reader", _reading_none),
        (connection, "_handle_event", _sending_none),
    )


_wrapping = Wrapping(_methods)


class Trailers(Held):
    """In place as long as the addon is loaded."""

    def __init__(self) -> None:
        super().__init__(_wrapping)
