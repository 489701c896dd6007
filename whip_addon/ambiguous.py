"""Requests that two readers could take for two different ones are not passed on.

mitmproxy refuses lengths that contradict each other. It hands on what RFC 9112 has a proxy
refuse all the same, and a service, or a proxy in front of it, may read that otherwise than
whip did when it chose and authorized the name:

- several Host lines (§3.2);
- a header that goes on in the next line, or that has a CR or a NUL in it (§5.2, RFC 9110 §5.5);
- a Host, or a request line inside of a tunnel, with a name of whip's in another domain than
  the one that is dialled: one service may stand behind several names. Any other Host is the
  service's own affair, `curl --header "Host: shop.example" http://instance1.testdom/` as well
  as that of another instance, which `whip replay-across` sends.

Whoever sets mitmproxy's `validate_inbound_headers` to false wants such requests to pass.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from mitmproxy import ctx
from mitmproxy.http import HTTPFlow, Request

from whip_addon.answers import plain_response
from whip_addon.fields import text, values
from whip_core.names import is_within, normalize, printable

TOLD = 80
"""Characters of a name or header that are repeated to the client."""
BROKEN_LINE = re.compile(rb"[\r\n\0]")


class Ambiguous:
    """Answers them 400.

    `is_ours` says whether a host is reached through whip, `domains` those that have agents.
    """

    name = "whip.ambiguous"

    def __init__(
        self, is_ours: Callable[[str], bool], domains: Callable[[], Iterable[str]]
    ) -> None:
        self._is_ours = is_ours
        self._domains = domains

    def requestheaders(self, flow: HTTPFlow) -> None:
        if flow.is_replay or flow.response is not None or not ctx.options.validate_inbound_headers:
            return
        why = _malformed(flow.request) or self._for_another_name(flow.request)
        if why is not None:
            flow.response = plain_response(400, why)
            flow.response.headers["connection"] = "close"

    def _for_another_name(self, request: Request) -> str | None:
        for name in _names(request):
            if name in ("", request.host):  # nearly always
                continue
            if self._is_ours(name) and not self._are_together(name, request.host):
                return (
                    f"the request is for {printable(request.host, TOLD)}, "
                    f"and also names {printable(name, TOLD)}"
                )
        return None

    def _are_together(self, *names: str) -> bool:
        """Whether they are one name, or lie in one domain."""
        try:
            one, other = (normalize(name) for name in names)
        except ValueError:
            return False
        return one == other or any(
            is_within(one, [domain]) and is_within(other, [domain]) for domain in self._domains()
        )


def _malformed(request: Request) -> str | None:
    if len(values(request, b"host")) > 1:
        return "the request has several Host headers"
    for name, value in request.headers.fields:
        if BROKEN_LINE.search(value):
            shown = printable(name.decode(errors="replace"), TOLD)
            return f"the header {shown} goes on in the next line, or has a control character"
    return None


def _names(request: Request) -> Iterator[str]:
    """The hosts that the request names, besides the one that mitmproxy goes by.

    Names only, as lenient as a service may be: an address is never whip's.
    """
    for authority in (*map(text, values(request, b"host")), request.authority):
        yield authority.rpartition("@")[2].partition(":")[0].strip()
