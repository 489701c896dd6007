"""An ASGI application as a service: on a free port of loopback, as long as the block runs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from whip_core.tasks import TaskSet

Application = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def serving(application: Application) -> AsyncIterator[int]:
    """Serve it with uvicorn (`whip-tunnel[testing]`); gives the port."""
    import uvicorn

    class Server(uvicorn.Server):
        """Without uvicorn's handlers of signals, which are the test run's."""

        def capture_signals(self) -> Any:
            import contextlib

            return contextlib.nullcontext()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(uvicorn.Config(application, log_level="warning", ws="none"))
        running = TaskSet().spawn(server.serve(sockets=[listener]), "the ASGI application")
        try:
            while not server.started:
                if running.done():
                    await running
                    raise RuntimeError("the application did not start")
                await asyncio.sleep(0.005)  # uvicorn has no event for it
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running
