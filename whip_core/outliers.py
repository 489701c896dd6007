"""Agents that keep failing are left out of their domain for a while, each time for longer.

Failing is FAILURES dials in a row that the agent could not open, or as many responses in
a row, seen by mitmproxy, with a status from 500 on. Left out is left out of the domain's
candidates; its own name still reaches it. Never more than half of a domain are, or a
fault that all of them share would leave the rest with all the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from whip_core.agents import AgentView, DialFinished
from whip_core.hookspecs import hookimpl

logger = logging.getLogger(__name__)

FAILURES = 5
"""In a row: Envoy's figure. One or two are a deployment, or a client's own fault."""
FIRST_TIME = 30.0
LONGEST_TIME = 300.0
"""Seconds out, doubled each time up to the longest: time to restart a service, and little
enough that one that is well again is missed by nobody. Envoy's figures, too."""
LARGEST_SHARE = 0.5
SERVER_ERROR = 500

Eject = Callable[[AgentView, float], None]
"""Leave an agent out for some seconds, then call `OutlierEjection.readmitted`."""


@dataclass(slots=True)
class _Health:
    domain: str
    failed_dials: int = 0
    failed_responses: int = 0
    times_ejected: int = 0
    is_ejected: bool = False
    readmitted_at: float = 0.0


class OutlierEjection:
    """The plugin that watches and decides; `eject` carries it out."""

    whip_name = "outlier-ejection"

    def __init__(self, eject: Eject, now: Callable[[], float] = time.monotonic) -> None:
        self._eject = eject
        self._now = now
        self._agents: dict[str, _Health] = {}

    @hookimpl
    def whip_agent_joined(self, agent: AgentView) -> None:
        self._agents[agent.session_id] = _Health(agent.name.domain)

    @hookimpl
    def whip_agent_left(self, agent: AgentView) -> None:
        self._agents.pop(agent.session_id, None)

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        for attempt in dial.failed:
            health = self._agents.get(attempt.agent.session_id)
            if health is not None:
                health.failed_dials += 1
                self._judge(attempt.agent, health, f"the last: {attempt.error}")
        if dial.error is None and dial.agent is not None:
            health = self._agents.get(dial.agent.session_id)
            if health is not None:
                health.failed_dials = 0

    @hookimpl
    def whip_response_seen(self, agent: AgentView, status: int) -> None:
        health = self._agents.get(agent.session_id)
        if health is None:
            return
        if status < SERVER_ERROR:
            health.failed_responses = 0
        else:
            health.failed_responses += 1
            self._judge(agent, health, f"the last answered {status}")

    def readmitted(self, agent: AgentView) -> None:
        """To be called when the agent's time is over."""
        health = self._agents.get(agent.session_id)
        if health is not None:
            health.is_ejected = False
            health.readmitted_at = self._now()
            logger.info("agent %s is a candidate of its domain again", agent.name)

    def _judge(self, agent: AgentView, health: _Health, why: str) -> None:
        if health.is_ejected or max(health.failed_dials, health.failed_responses) < FAILURES:
            return
        if not self._has_room(health.domain):
            logger.debug("agent %s fails too, with half of its domain left out", agent.name)
            return
        if self._now() - health.readmitted_at > LONGEST_TIME:
            health.times_ejected = 0
        seconds = min(FIRST_TIME * 2**health.times_ejected, LONGEST_TIME)
        health.times_ejected += 1
        health.failed_dials = health.failed_responses = 0
        health.is_ejected = True
        logger.warning(
            "agent %s is left out of its domain for %.0f s: it failed %d times in a row (%s)",
            agent.name,
            seconds,
            FAILURES,
            why,
        )
        self._eject(agent, seconds)

    def _has_room(self, domain: str) -> bool:
        members = [health for health in self._agents.values() if health.domain == domain]
        ejected = sum(health.is_ejected for health in members)
        return ejected + 1 <= len(members) * LARGEST_SHARE
