"""A program: `whip` whose slow timers run down in seconds, and that says what it holds.

What notices dead paths, waits before it comes back and gives back what nobody needs is the
same code as ever, on shorter intervals. On SIGUSR2 it gives free memory back to the system,
so that what it has is what it holds, and prints `tasks | N | NAME…`. WHIP_TEST_DNS_PORT in the
environment is a port of 127.0.0.1 where DNS is asked instead of at the system's servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal

from client_agent import backoff, discovery
from whip_core import channel, cli, heartbeat, parked_pool
from whip_core.settings import BrokerSettings

KEEPALIVE = 2.0
PINGS = 1.5
"""Seconds, where a user has 20, 15 and 20: a dead path is noticed within six."""
RETURN = 1.0
"""Seconds, the bound of every pause before an agent tries again."""
WINDOW = 0.5
"""Seconds, where parked connections that were not needed are looked at every ten."""
LOOKUP = 0.5
"""Seconds between two questions to DNS, and for one to be answered."""
OF_CHANNEL = {
    "grpc.keepalive_time_ms",
    "grpc.keepalive_timeout_ms",
    "grpc.http2.ping_timeout_ms",
    "grpc.min_reconnect_backoff_ms",
}


def hurry() -> None:
    channel.CHANNEL_OPTIONS[:] = [
        (name, int(KEEPALIVE * 1000) if name in OF_CHANNEL else value)
        for name, value in channel.CHANNEL_OPTIONS
    ]
    heartbeat.PING_INTERVAL = PINGS
    heartbeat.SILENCE_LIMIT = 3 * PINGS
    parked_pool.WINDOW = WINDOW
    backoff.RETURN_BOUND = RETURN
    discovery.MIN_TTL = discovery.RETRY_BOUND = LOOKUP
    if port := os.environ.get("WHIP_TEST_DNS_PORT"):
        defaults(discovery.Resolvers).update(
            nameservers=["127.0.0.1"], nameserver_port=int(port), timeout=LOOKUP
        )
    defaults(backoff.Backoff)["maximum"] = RETURN
    defaults(BrokerSettings).update(ping_interval=PINGS, ping_timeout=PINGS)


def defaults(of: type) -> dict[str, object]:
    found: dict[str, object] = of.__init__.__kwdefaults__  # type: ignore[misc]
    return found


def tell(*_: object) -> None:
    gc.collect()
    # After a burst of handshakes the allocator keeps tens of megabytes that nothing is in.
    with contextlib.suppress(OSError, AttributeError):  # another libc than glibc
        ctypes.CDLL(None).malloc_trim(0)
    names = sorted(task.get_name() for task in asyncio.all_tasks())
    print("tasks", len(names), *names, sep=" | ", flush=True)


if __name__ == "__main__":
    hurry()
    signal.signal(signal.SIGUSR2, tell)
    cli.main(prog_name="whip")
