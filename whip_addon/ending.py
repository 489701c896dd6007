"""The end of the proxy's clients when mitmproxy ends.

mitmproxy leaves its connections to the end of its event loop, which cancels them wherever
they are, and Python 3.11 prints a traceback for each. Here they end one step earlier, as
when a client hangs up. It comes after the broker's end: the streams have broken by then,
and a client whose data was cut has seen a reset.
"""

from __future__ import annotations

import asyncio

from whip_addon import transports

TIMEOUT = 2.0
"""Seconds that clients' connections may take: their hooks may be a user's, and slow."""
LOOK_AGAIN = 0.01
"""Seconds between two looks."""


async def end_clients() -> None:
    """Hang up on every client of mitmproxy; wait until its connections are gone."""
    connections = transports.handlers()
    for handler in list(connections.values()):
        transports.hang_up(handler.client, "the proxy ends")
    try:
        async with asyncio.timeout(TIMEOUT):
            while connections:  # noqa: ASYNC110  # mitmproxy has no event for it
                await asyncio.sleep(LOOK_AGAIN)
    except TimeoutError:
        pass
