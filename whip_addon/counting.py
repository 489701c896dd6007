"""Counts each exchange with the proxy's client once, under labels of a bounded number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mitmproxy.flow import Error, Flow
from mitmproxy.http import HTTPFlow
from mitmproxy.tcp import TCPFlow

from whip_addon.answers import Answer
from whip_core.agents import RequestFinished

PROTOCOLS = frozenset({"HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3"})
CLIENT_LEFT = ("client disconnected", "stream reset by client")
"""How mitmproxy's texts begin when the client wants no answer any more (HTTP/1, HTTP/2)."""
NO_STATUS = 0
"""For what has no HTTP status: raw TCP, or a client that was gone before its answer."""


class Counts(Protocol):
    """`whip_core.Broker`, as far as it is used here."""

    def request_finished(self, request: RequestFinished) -> None: ...


class Counting:
    """mitmproxy ends every HTTP flow in `response` or `error`, and never in both."""

    name = "whip.counting"

    def __init__(self, counts: Callable[[], Counts | None]) -> None:
        self._counts = counts

    def response(self, flow: HTTPFlow) -> None:
        status = flow.response.status_code if flow.response is not None else NO_STATUS
        self._count(status, _protocol(flow), _error_class(flow))

    def error(self, flow: HTTPFlow) -> None:
        message = flow.error.msg if flow.error is not None else ""
        error = _error_class(flow) or "upstream"
        if isinstance(message, Answer):
            status = message.http_status
        elif error in ("client-left", "killed"):
            status = NO_STATUS
        else:
            status = flow.response.status_code if flow.response is not None else 502
        self._count(status, _protocol(flow), error)

    def http_connect_error(self, flow: HTTPFlow) -> None:
        status = flow.response.status_code if flow.response is not None else NO_STATUS
        self._count(status, _protocol(flow), _error_class(flow))

    def tcp_end(self, flow: TCPFlow) -> None:
        self._count(NO_STATUS, "tcp", _error_class(flow))

    def tcp_error(self, flow: TCPFlow) -> None:
        self._count(NO_STATUS, "tcp", _error_class(flow))

    def _count(self, status: int, protocol: str, error: str) -> None:
        counts = self._counts()
        if counts is not None:
            status = status if 100 <= status <= 599 else NO_STATUS
            counts.request_finished(RequestFinished(status, protocol, error))


def _protocol(flow: HTTPFlow) -> str:
    if flow.websocket is not None:
        return "websocket"
    version: str = flow.request.http_version
    return version if version in PROTOCOLS else "other"


def _error_class(flow: Flow) -> str:
    if flow.error is None:
        return ""
    message = flow.error.msg
    if isinstance(message, Answer):
        return message.reason
    if message == Error.KILLED_MESSAGE:
        return "killed"
    if message.lower().startswith(CLIENT_LEFT) or not flow.client_conn.connected:
        return "client-left"
    return "upstream"
