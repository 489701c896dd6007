"""X-Forwarded-For: a service behind a tunnel sees its agent connect, so the header tells it
whose request this is. Elsewhere (fallback) the header is extended, but not added."""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy.http import HTTPFlow

from whip_addon.fields import values

HEADER = b"x-forwarded-for"


class Forwarded:
    """Appends the client's address. `is_ours` says whether a host is reached through whip."""

    name = "whip.forwarded"

    def __init__(self, is_ours: Callable[[str], bool]) -> None:
        self._is_ours = is_ours

    def requestheaders(self, flow: HTTPFlow) -> None:
        hops = values(flow.request, HEADER)
        if flow.is_replay or not (hops or self._is_ours(flow.request.host)):
            return
        # In one line: several mean the same list (RFC 9110 §5.3).
        hops.append(str(flow.client_conn.peername[0]).encode())
        flow.request.headers[HEADER] = b", ".join(hops)
