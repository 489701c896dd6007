"""A proxy without a password is for this machine only, unless somebody says otherwise.

mitmproxy listens on all interfaces by default. Where no --listen-host is given, and nobody is
asked for a password, it is kept to loopback; clients of a mode that takes redirected packets
come with other addresses, so that those are left alone.

mitmproxy 11 loads scripts before it listens. mitmproxy 12 has begun to by then: its servers
are stopped and started again as soon as they run, before any client is let in (`Gate`).
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import logging
from typing import Any

from mitmproxy import ctx
from mitmproxy.proxy.mode_specs import LocalMode, ProxyMode, TransparentMode, WireGuardMode

from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
REDIRECTED = (LocalMode, TransparentMode, WireGuardMode)


class Loopback:
    name = "whip.loopback"

    def __init__(self) -> None:
        self._is_decided = False
        self._tasks = TaskSet()
        self._rebinding: asyncio.Task[None] | None = None

    def configure(self, updated: set[str]) -> None:
        """mitmproxy tells a new script all options at once, when they are known."""
        proxyserver = ctx.master.addons.get("proxyserver")
        if self._is_decided or proxyserver is None or proxyserver.is_running:
            return
        self._is_decided = True
        modes = [ProxyMode.parse(mode) for mode in ctx.options.mode]
        if (
            ctx.options.listen_host
            or ctx.options.proxyauth
            or not ctx.options.server
            or any(isinstance(mode, REDIRECTED) for mode in modes)
        ):
            return
        ctx.options.update(listen_host=LOOPBACK)
        logger.info(
            "whip: the proxy asks for no password, so it listens on %s only: --listen-host and "
            "whip_proxy_auth_username open it to others",
            LOOPBACK,
        )
        if len(proxyserver.servers):
            self._rebinding = self._tasks.spawn(_rebind(proxyserver.servers, modes), "rebind")

    # No coroutine function, as mitmproxy calls it from where it cannot wait, too.
    def running(self) -> asyncio.Task[None] | None:
        return self._rebinding


async def _rebind(servers: Any, modes: list[ProxyMode]) -> None:
    await servers.update(modes)  # changes nothing, and waits for what is under way
    if all(server.is_running for server in servers):
        await servers.update([])
        await servers.update(modes)
