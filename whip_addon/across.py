"""Replaying one flow's request to several instances, inside mitmproxy.

The copies differ in where they go, not in what they say: their Host header stays. They are
replayed by mitmproxy's own client replay, so they are flows that can be looked at.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Server
from mitmproxy.http import HTTPFlow

from whip_addon.comparing import Comparison, Reply, compare
from whip_addon.labels import forget
from whip_addon.replies import outcome_of

TIMEOUT = 60.0
"""Seconds until an instance that has not answered counts as one that does not."""


class Across:
    """The hooks tell of the copies' ends."""

    name = "whip.across"

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def replay(
        self, flow: HTTPFlow, instances: Sequence[str], ignored: Collection[str]
    ) -> Comparison:
        """Never raises; an instance that has not answered in time is a reply that says so."""
        copies = {instance: _copy_to(instance, flow) for instance in instances}
        loop = asyncio.get_running_loop()
        ends = {copy.id: loop.create_future() for copy in copies.values()}
        self._waiting |= ends
        try:
            ctx.master.commands.call("replay.client", list(copies.values()))
            await asyncio.wait(ends.values(), timeout=TIMEOUT)
        finally:
            for flow_id in ends:
                self._waiting.pop(flow_id, None)
        replies = [
            outcome_of(instance, copy)
            if ends[copy.id].done()
            else Reply(instance, error=f"no answer within {TIMEOUT:g} s")
            for instance, copy in copies.items()
        ]
        return compare(replies, ignored)

    def response(self, flow: HTTPFlow) -> None:
        self._ended(flow)

    def error(self, flow: HTTPFlow) -> None:
        self._ended(flow)

    def _ended(self, flow: HTTPFlow) -> None:
        waiting = self._waiting.get(flow.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


def _copy_to(instance: str, flow: HTTPFlow) -> HTTPFlow:
    copy: Any = flow.copy()
    copy.request.data.host = instance  # `request.host = ` would change the Host header
    # Labels and connection are new, so that they tell who has answered, if anybody.
    forget(copy)
    copy.server_conn = Server(address=None)
    assert isinstance(copy, HTTPFlow)
    return copy
