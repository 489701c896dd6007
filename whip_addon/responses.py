"""Tells plugins of each HTTP response that came from an agent: its status says how it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mitmproxy.http import HTTPFlow

from whip_core.agents import AgentView


class Told(Protocol):
    """`whip_core.Broker`, as far as it is used here."""

    def response_seen(self, agent: AgentView, status: int) -> None: ...


class Responses:
    """`agent_of` knows the agent that a request was sent to, if it was."""

    name = "whip.responses"

    def __init__(
        self, broker: Callable[[], Told | None], agent_of: Callable[[HTTPFlow], AgentView | None]
    ) -> None:
        self._broker = broker
        self._agent_of = agent_of

    # Not when the response is complete, as some never are.
    def responseheaders(self, flow: HTTPFlow) -> None:
        broker = self._broker()
        if broker is None or flow.response is None:
            return
        agent = self._agent_of(flow)
        if agent is not None:
            broker.response_seen(agent, flow.response.status_code)
