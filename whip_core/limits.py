"""How much a broker takes on: each bound is an option, with a default that protects.

Beyond a bound, newcomers are refused with a clear, counted error; whoever is in already is left
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_SIZE = 1024
"""Octets that a preamble, or a message, of an agent with a long name needs."""
MOST = 2**31 - 1
"""gRPC's and mitmproxy's numbers have 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds. 0 means no bound, except for sizes, which are always bounded."""

    unauthenticated: int = 1024
    """Connections to each port that have not identified themselves: a restart brings every agent
    at once, and each needs a moment; at some 30 KB each they are 30 MB of an attacker's."""
    agents: int = 20_000
    """Registered agents: twice what DESIGN §12 measures, at 60 KB each 1.2 GB."""
    agents_per_identity: int = 10_000
    """Those with the same certificate names: one stolen certificate does not fill the broker,
    and all the agents of a domain may share one."""
    streams: int = 20_000
    """Open streams: at 40 KB each 800 MB."""
    streams_per_agent: int = 4096
    """What an agent itself opens at once at the most."""
    pending_dials: int = 4096
    """Dials under way, those that wait for an agent to appear among them."""
    dial_rate: float = 5000.0
    """Dials a second for one caller: more than one process can use, so it only ends runaways.
    Lower it where callers are people."""
    preamble_size: int = 4096
    """Octets of a reverse connection's preamble; ours needs about 200."""
    message_size: int = 64 * 1024
    """Octets of one control message: a thousand ports and labels of any sensible size fit."""


DEFAULT = Limits()
