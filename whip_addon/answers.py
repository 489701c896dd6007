"""What mitmproxy answers its client when a dial fails: the dial's status and its text.

mitmproxy answers every failed connection with 502. It carries the error's text unchanged
from the failed call to the answer, though, so the text itself can say more: `Answer` is a
string with a status. It is read in three places:

- `HttpStream.handle_protocol_error` is wrapped: the event of a failed connection answers
  with the text's status, over HTTP/1 and HTTP/2;
- `http_connect_error` puts it into the answer to a CONNECT;
- counting and logs know the error's short name from it.

`HttpStream.start_request_stream` is wrapped too: as it is, mitmproxy crashes when a large
request has been answered already (407, 403), as it cannot stream what nobody will get.

Where a mitmproxy has no such method, all of this falls back to its 502.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.flow import Error
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http._events import RequestEndOfMessage
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from whip_addon.facts import Facts
from whip_addon.wrapping import Held, Methods, Wrapping
from whip_core.errors import DialError

Method = Callable[..., Iterator[Any]]


class Answer(str):
    """The text of a failed dial, with the status to answer and the error's short name."""

    __slots__ = ("facts", "http_status", "reason")
    http_status: int
    reason: str
    facts: Facts | None
    """What the flow is labelled with, if the dial got as far as a broker."""

    def __new__(
        cls, text: str, http_status: int, reason: str, facts: Facts | None = None
    ) -> Answer:
        answer = super().__new__(cls, text)
        answer.http_status = http_status
        answer.reason = reason
        answer.facts = facts
        return answer

    def __deepcopy__(self, memo: object) -> Answer:
        return self  # mitmproxy copies a flow's state before it replays the flow

    @classmethod
    def to(cls, error: DialError, hint: str = "", facts: Facts | None = None) -> Answer:
        text = f"{error}; {hint}" if hint else str(error)
        return cls(text, error.http_status, error.reason, facts)


class DialFailed(OSError):
    """What the seam raises: its text is the `Answer`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer

    def __str__(self) -> str:
        return self.answer


class _AnsweredCode:
    """mitmproxy's code for an error, the same in all but the status that it stands for."""

    def __init__(self, code: Any, status: int) -> None:
        self._code = code
        self._status = status

    def http_status_code(self) -> int:
        return self._status

    def __eq__(self, other: object) -> bool:
        return bool(self._code == other)

    def __hash__(self) -> int:
        return hash(self._code)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._code, name)


def _with_status(code: Any, status: int) -> Any:
    if isinstance(code, int):  # mitmproxy 11
        return status
    return _AnsweredCode(code, status) if hasattr(code, "http_status_code") else code


def _answering(handle_protocol_error: Method) -> Method:
    def answer_with_status(stream: Any, event: Any) -> Iterator[Any]:
        if isinstance(event.message, Answer):
            event.code = _with_status(event.code, event.message.http_status)
        yield from handle_protocol_error(stream, event)

    return answer_with_status


def _discarding(start_request_stream: Method) -> Method:
    def discard_if_answered(stream: Any) -> Iterator[Any]:
        if stream.flow.response is None:
            yield from start_request_stream(stream)
            return

        def discard(event: Any) -> Iterator[Any]:
            if isinstance(event, RequestEndOfMessage):
                yield from stream.state_consume_request_body(event)

        stream.flow.request.stream = False
        stream.client_state = discard

    return discard_if_answered


def plain_response(status: int, text: str) -> http.Response:
    return http.Response.make(status, f"{text}\n", {"content-type": "text/plain; charset=utf-8"})


def _methods() -> Methods:
    stream = getattr(http_layers, "HttpStream", None)
    return (
        (stream, "handle_protocol_error", _answering),
        (stream, "start_request_stream", _discarding),
    )


_wrapping = Wrapping(_methods)


class Answers(Held):
    """The hooks, and when the wrappers are in place."""

    name = "whip.answers"

    def __init__(self) -> None:
        super().__init__(_wrapping)
        self._failed: weakref.WeakKeyDictionary[Server, Answer] = weakref.WeakKeyDictionary()

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        if isinstance(data.server.error, Answer):
            self._failed[data.server] = data.server.error
            # mitmproxy would never try the name again for this client, who may stay for
            # hours (HTTP/2). An agent comes back in seconds. Other hooks see the error yet.
            asyncio.get_running_loop().call_soon(setattr, data.server, "error", None)

    def http_connect_error(self, flow: http.HTTPFlow) -> None:
        answer = self._failed.get(flow.server_conn)
        if answer is not None:
            flow.error = Error(answer)
            flow.response = plain_response(answer.http_status, answer)
