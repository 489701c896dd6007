"""Everything an agent needs to start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from client_agent.egress import EgressProxy
from client_agent.endpoints import Endpoint
from client_agent.exposure import Exposure
from whip_core.names import AgentName
from whip_core.settings import DRAIN_TIMEOUT, TLSFiles, require_plaintext_allowed

MAX_BROKERS = 100
"""Addresses of one endpoint that are joined: past a few dozen brokers an agent holds streams
to some of them only (DESIGN §11), and a forged answer must not make us call the whole world."""


BROKER_COUNT = 2
"""Brokers of one fabric that an agent holds: one may die without anybody noticing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    name: AgentName
    exposure: Exposure
    endpoints: tuple[Endpoint, ...]
    tls: TLSFiles | None = None
    allow_plaintext: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    drain_timeout: float = DRAIN_TIMEOUT
    broker_count: int = BROKER_COUNT
    """Of each endpoint, if its brokers are joined by a fabric; 0 means all."""
    reverse_hosts: tuple[str, ...] = ()
    """Hosts (`*.name` for one label) that brokers may have us connect back to besides theirs."""
    egress: EgressProxy | None = None
    """The proxy that connections to brokers go through, as far as it carries them."""
    max_brokers: int = MAX_BROKERS

    def __post_init__(self) -> None:
        # What a name leads to is known, and checked, when it has been looked up.
        for endpoint in self.endpoints:
            if self.tls is None and endpoint.is_literal:
                require_plaintext_allowed("connect to", endpoint.host, self.allow_plaintext)
