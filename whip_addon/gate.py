"""Clients that come while mitmproxy still starts wait until it has.

mitmproxy listens before its addons have heard that it runs, and its own for TLS has no
certificates until then. In mitmproxy 12 a request that comes in between is an error, and
an error during the start ends the program.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio

from mitmproxy import ctx
from mitmproxy.connection import Client


class Gate:
    name = "whip.gate"

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def running(self) -> None:
        if _starts():
            # Addons hear of it in the order that they stand in: this one is the last then.
            ctx.master.addons.add(_Opener(self._open))
        else:
            self._open.set()

    async def client_connected(self, client: Client) -> None:
        if _starts():
            await self._open.wait()


class _Opener:
    """Opens the gate when every addon knows that mitmproxy runs, and goes."""

    name = "whip.gate.opener"

    def __init__(self, gate: asyncio.Event) -> None:
        self._gate = gate

    def running(self) -> None:
        self._gate.set()
        asyncio.get_running_loop().call_soon(ctx.master.addons.remove, self)


def _starts() -> bool:
    """Whether mitmproxy's addon for TLS is there and has no certificates yet."""
    tls = ctx.master.addons.get("tlsconfig")
    return tls is not None and tls.certstore is None
