"""The hooks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter

from whip_core import Caller, hookimpl
from whip_core.agents import AgentView


@dataclass(frozen=True)
class Settings:
    header: str = field(default="x-canary", metadata={"help": "the header that marks a request"})
    label: str = field(default="canary", metadata={"help": "the label that canaries have"})

    def __post_init__(self) -> None:
        if self.header != self.header.lower():
            raise ValueError(f"header {self.header!r} is to be written in lower case")


class Canary:
    """Settings and the counter come before the first dial."""

    settings: Settings
    picks: Counter

    @hookimpl
    def whip_settings(self) -> type[Settings]:
        return Settings

    @hookimpl
    def whip_configure(self, settings: Settings) -> None:
        self.settings = settings

    @hookimpl
    def whip_metrics(self, registry: Any) -> None:
        self.picks = Counter(
            "whip_canary_picks", "Picks, by what was picked", ["canary"], registry=registry
        )

    @hookimpl
    def whip_pick(self, candidates: Sequence[AgentView], caller: Caller) -> AgentView | None:
        """One of the kind that the request is marked for; None while there is none of it."""
        marked = caller.request is not None and self.settings.header in caller.request.headers
        chosen = [agent for agent in candidates if self._is_canary(agent) == marked]
        if not chosen:
            return None
        self.picks.labels(str(marked).lower()).inc()
        return random.choice(chosen)  # noqa: S311  # no secret

    def _is_canary(self, agent: AgentView) -> bool:
        return agent.labels.get(self.settings.label) == "true"
