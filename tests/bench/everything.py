"""A plugin with every hook of a dial, each with as little in it as one can have."""

from __future__ import annotations

from whip_core import Caller, hookimpl
from whip_core.agents import AgentView, DialFinished, StreamClosed
from whip_core.names import Target


class Everything:
    """Decides nothing, and counts what it is told."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def whip_resolve(self, target: Target, caller: Caller) -> None:
        return None

    @hookimpl
    def whip_pick(self, candidates: list[AgentView], caller: Caller) -> None:
        return None

    @hookimpl
    def whip_authorize_dial(self, target: Target, agent: AgentView, caller: Caller) -> None:
        return None

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        self.count += 1

    @hookimpl
    def whip_stream_opened(self, dial: DialFinished) -> None:
        self.count += 1

    @hookimpl
    def whip_stream_closed(self, stream: StreamClosed) -> None:
        self.count += 1
