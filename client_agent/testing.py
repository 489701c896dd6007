"""A real agent in this process, for tests: ours, and those of programs that use whip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from client_agent.agent import Agent
from client_agent.endpoints import Endpoint
from client_agent.exposure import parse_exposure
from client_agent.settings import AgentSettings
from whip_core.names import AgentName
from whip_core.settings import TLSFiles
from whip_core.tasks import TaskSet


@asynccontextmanager
async def registered(
    name: str,
    control_port: int,
    *,
    ports: str,
    tls: TLSFiles | None = None,
    labels: Mapping[str, str] | None = None,
    plugins: Sequence[object] = (),
    wait: bool = True,
) -> AsyncIterator[Agent]:
    """An agent `hostname.domain`, registered at the broker on this machine; cut off at the end.

    Without `wait` it may not be registered yet, or never be.
    """
    hostname, _, domain = name.partition(".")
    agent = Agent(
        AgentSettings(
            name=AgentName.parse(hostname, domain),
            exposure=parse_exposure([ports]),
            endpoints=(Endpoint.parse(f"localhost:{control_port}"),),
            tls=tls,
            labels=dict(labels or {}),
        ),
        plugins=plugins,
    )
    tasks = TaskSet()
    task = tasks.spawn(agent.run(), f"the agent {name}")
    waiting = tasks.spawn(agent.wait_registered(), f"{name} is registered")
    try:
        if wait:
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task  # raises what kept it from starting
        yield agent
    finally:
        await tasks.cancel_all()
