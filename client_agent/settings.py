"""Everything an agent needs to start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from client_agent.endpoints import Endpoint
from client_agent.exposure import Exposure
from whip_core.names import AgentName
from whip_core.settings import TLSFiles

DRAIN_TIMEOUT = 30.0
"""Seconds that streams have to finish when the agent is told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    name: AgentName
    exposure: Exposure
    endpoints: tuple[Endpoint, ...]
    tls: TLSFiles | None = None
    allow_plaintext: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    drain_timeout: float = DRAIN_TIMEOUT
