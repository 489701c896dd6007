"""X-Forwarded-For: a request that has been forwarded before tells of this hop as well."""

from __future__ import annotations

from mitmproxy.http import HTTPFlow

HEADER = "x-forwarded-for"


class Forwarded:
    """Appends the client's address. Where the header is missing none is made up."""

    name = "whip.forwarded"

    def requestheaders(self, flow: HTTPFlow) -> None:
        if HEADER in flow.request.headers and not flow.is_replay:
            # `get_all` and one line: several lines mean the same list (RFC 9110 §5.3).
            hops = [*flow.request.headers.get_all(HEADER), str(flow.client_conn.peername[0])]
            flow.request.headers[HEADER] = ", ".join(hops)
