"""A response of mitmproxy's, as what is compared."""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

from mitmproxy.http import HTTPFlow, Response

from whip_addon.comparing import Reply


def reply_of(instance: str, response: Response) -> Reply:
    """The body is decoded if it can be."""
    try:
        body = response.content
    except ValueError:
        body = response.raw_content
    headers = tuple(response.headers.items(multi=True))
    return Reply(instance, response.status_code, headers, body or b"")


def outcome_of(instance: str, flow: HTTPFlow) -> Reply:
    """What became of a flow that has ended."""
    if flow.error is not None or flow.response is None:
        return Reply(instance, error=flow.error.msg if flow.error is not None else "no answer")
    return reply_of(instance, flow.response)


def why_not_replayed(flow: HTTPFlow) -> str | None:
    """Why this flow's request cannot be sent again, or None."""
    if flow.websocket is not None:
        return "it is a WebSocket"
    if flow.request.method == "CONNECT":
        return "it is a CONNECT"
    if flow.request.raw_content is None:
        return "its body was streamed and not kept"
    return None
