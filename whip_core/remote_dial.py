"""What is known of a dial that a broker in another process has made."""

from __future__ import annotations

import time
from collections.abc import Callable

from whip_core.agents import AgentView, Destination, DialFinished
from whip_core.caller import Caller
from whip_core.dial_wire import Served
from whip_core.names import Target


class RemoteDial:
    """A stream's extra info "whip", with the face of that of a broker in this process."""

    def __init__(
        self,
        target: Target,
        caller: Caller,
        served: Served,
        started: float,
        leaves: Callable[[AgentView], bool],
    ) -> None:
        """`started` is on the monotonic clock; `leaves` says whether an agent's dials are over."""
        self._target = target
        self._caller = caller
        self._served = served
        self._leaves = leaves
        self._total_seconds = time.monotonic() - started

    @property
    def destination(self) -> Destination:
        return Destination(self._served.asked, self._served.agent.name)

    @property
    def agent(self) -> AgentView:
        """As it was when it was dialled."""
        return self._served.agent

    @property
    def agent_leaves(self) -> bool:
        """Whether its agent, or the broker, waits for its streams to end."""
        return self._leaves(self._served.agent)

    def finished(self, error: None = None) -> DialFinished:
        served = self._served
        return DialFinished(
            dial_id=served.dial,
            target=self._target,
            caller=self._caller,
            agent=served.agent,
            port=served.port,
            error=error,
            parked=served.parked,
            resolve_seconds=served.resolve_seconds,
            open_seconds=served.open_seconds,
            total_seconds=self._total_seconds,
            pick_seconds=served.pick_seconds,
            relayed_by=served.relayed_by,
        )
