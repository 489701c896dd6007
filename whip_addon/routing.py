"""Where a connection that mitmproxy wants to open may go. Decides; opens nothing.

1. An IP address is never whip's: agents register names.
2. A name that is whip's (registered, or in one of whip's domains) goes through whip, and
   never anywhere else, whatever becomes of the dial.
3. The upstream proxy that mitmproxy is configured to use is reached directly: whoever
   started it has named it.
4. Everything else goes out directly if fallback allows it, but for a name that a plugin
   resolves to another target: it may be known to nobody else. Without fallback an address
   is refused, and a name is left to the broker: it says what is wrong with it, or waits
   for its agent, or has a plugin that knows it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection

from whip_core.host_patterns import address_or_none

ALLOW_HINT = "to let other hosts out directly use --fallback=true (whip_fallback)"


class Route(enum.Enum):
    WHIP = "through an agent"
    DIRECT = "straight out"
    ASK = "left to the broker, which does not know it so far"
    REFUSE = "refused"


def route(
    host: str,
    port: int,
    *,
    ours: Callable[[str], bool],
    fallback: bool,
    upstreams: Collection[tuple[str, int]] = (),
    resolved: Callable[[str, int], bool] = lambda *_: False,
) -> Route:
    """`ours` is the broker's `routes`; `upstreams` the upstream proxies in use.

    `resolved` tells whether a plugin resolves the name to another target. It is asked only
    where that makes a difference, and may raise `DialError`.
    """
    address = address_or_none(host) is not None
    if not address and ours(host):
        return Route.WHIP
    if (host, port) in upstreams:
        return Route.DIRECT
    if fallback:
        return Route.WHIP if not address and resolved(host, port) else Route.DIRECT
    return Route.REFUSE if address else Route.ASK
