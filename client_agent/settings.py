"""Everything an agent needs to start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from client_agent.endpoints import Endpoint
from client_agent.exposure import Exposure
from whip_core.names import AgentName
from whip_core.settings import TLSFiles, require_plaintext_allowed

DRAIN_TIMEOUT = 30.0
"""Seconds that streams have to finish when the agent is told to stop."""


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

    def __post_init__(self) -> None:
        # What a name leads to is known, and checked, when it has been looked up.
        for endpoint in self.endpoints:
            if self.tls is None and endpoint.is_literal:
                require_plaintext_allowed("connect to", endpoint.host, self.allow_plaintext)
