"""`http://whip.internal/` through the proxy: what the proxy itself knows, for programs.

It is answered here and never dialled, so it works wherever the proxy can be reached.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import json
from collections.abc import Callable

from mitmproxy.http import HTTPFlow, Response

from whip_addon.answers import plain_response
from whip_addon.prompt import Agents

HOST = "whip.internal"
AGENTS = "/api/agents"


class Internal:
    name = "whip.internal"

    def __init__(self, broker: Callable[[], Agents | None]) -> None:
        self._broker = broker

    def requestheaders(self, flow: HTTPFlow) -> None:
        if flow.request.host.lower().removesuffix(".") == HOST and flow.response is None:
            flow.response = self._answer(flow.request.path.partition("?")[0])

    def _answer(self, path: str) -> Response:
        broker = self._broker()
        if broker is None:
            return plain_response(503, "the broker does not run")
        if path != AGENTS:
            return plain_response(404, f"there is {AGENTS}")
        agents = [
            {
                "name": agent.name.full,
                "hostname": agent.name.hostname,
                "domain": agent.name.domain,
                "ports": list(agent.ports),
                "labels": dict(agent.labels),
            }
            for agent in broker.agents
        ]
        return Response.make(
            200, json.dumps({"agents": agents}), {"content-type": "application/json"}
        )
