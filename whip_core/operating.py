"""What runs beside a broker for its operator: the metrics port, the control socket, systemd."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from whip_core import control_socket, monitor
from whip_core.errors import SettingsError
from whip_core.status import Status, Watched
from whip_core.systemd import notifying
from whip_core.web import WebServer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen. Empty is not at all; None the default, which may be taken."""

    metrics: str
    metrics_chosen: bool
    control_socket: str | None = None


@asynccontextmanager
async def operating(broker: Watched, listening: Listening) -> AsyncIterator[WebServer]:
    """Let the operator see and steer `broker` while the block runs.

    Gives a server of the status page that listens nowhere: `connect` reaches it from
    inside. Raises `SettingsError` if something that was chosen cannot be listened on.
    """
    status = Status(broker)
    address = monitor.listen_address(listening.metrics)
    routes = status.routes(address[0] if address else "127.0.0.1")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            monitor.serving(listening.metrics, routes, chosen=listening.metrics_chosen)
        )
        await stack.enter_async_context(
            _control_socket(status, broker.control_port, listening.control_socket)
        )
        page = await stack.enter_async_context(WebServer(status.routes()))
        await stack.enter_async_context(notifying(broker.why_not_ready))
        yield page


@asynccontextmanager
async def _control_socket(
    status: Status, control_port: int, chosen: str | None
) -> AsyncIterator[None]:
    if chosen == "":
        yield
        return
    try:
        path = Path(chosen) if chosen else control_socket.default_path(control_port)
        sock = control_socket.bind(path.expanduser(), in_default_folder=chosen is None)
    except SettingsError as error:
        if chosen:
            raise
        logger.warning(
            "%s; continuing without a control socket, so `whip agents` cannot find this broker",
            error,
        )
        yield
        return
    logger.info("control socket %s", path)
    async with WebServer(status.control_routes()) as server:
        server.listen(sock)
        try:
            yield
        finally:
            path.expanduser().unlink(missing_ok=True)
