"""A response of mitmproxy's, as what is compared."""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import html

from mitmproxy.http import HTTPFlow, Response

from whip_addon.comparing import Reply
from whip_addon.facts import FAULT, INSTANCE
from whip_addon.internal import is_internal


def reply_of(instance: str, response: Response) -> Reply:
    """The body is decoded if it can be."""
    try:
        body = response.content
    except ValueError:
        body = response.raw_content
    headers = tuple(response.headers.items(multi=True))
    return Reply(instance, response.status_code, headers, body or b"")


def not_reached(instance: str, response: Response) -> Reply:
    """What a proxy has answered in the instance's place."""
    page = reply_of(instance, response).body.decode(errors="replace")
    # mitmproxy's own page, or our text.
    text = html.unescape(page.partition("<p>")[2].partition("</p>")[0]) or page
    why = " ".join(text.split())
    return Reply(
        instance, error=f"{response.status_code}, {why}" if why else str(response.status_code)
    )


def outcome_of(instance: str, flow: HTTPFlow) -> Reply:
    """What became of a flow that has ended."""
    if flow.error is not None or flow.response is None:
        return Reply(instance, error=flow.error.msg if flow.error is not None else "no answer")
    # The labels are put on before any answer is seen.
    own = str(flow.metadata.get(FAULT, "")).startswith("status ")
    if own or flow.metadata.get(INSTANCE) != instance:
        return not_reached(instance, flow.response)
    return reply_of(instance, flow.response)


def why_not_replayed(flow: HTTPFlow) -> str | None:
    """Why this flow's request cannot be sent again, or None."""
    if flow.websocket is not None:
        return "it is a WebSocket"
    if flow.request.method == "CONNECT":
        return "it is a CONNECT"
    if is_internal(flow.request.host):
        return "it went to whip's own status page"
    if flow.request.raw_content is None:
        return "its body was streamed and not kept"
    return None
