"""Connections through the egress proxy; TLS, on top of them, ends at the broker.

gRPC opens its connections itself and knows no SOCKS. So for the control stream there is a
bridge: a unix socket of our own, in a folder nobody else can enter, behind which each
connection goes through the proxy to the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio import Proxy

from client_agent.egress import EgressProxy
from whip_core.relay import RelaySide, break_off, join
from whip_core.tasks import TaskSet

CONNECT_TIMEOUT = 10.0
"""Seconds for the proxy, and for what it connects to."""

_TYPES = {"http": ProxyType.HTTP, "socks5": ProxyType.SOCKS5}


async def connect(egress: EgressProxy, host: str, port: int) -> socket.socket:
    """A connected socket to `host:port` by way of the proxy; raises `OSError`."""
    username, password = egress.login or (None, None)
    proxy = Proxy(_TYPES[egress.scheme], egress.host, egress.port, username, password, rdns=True)
    try:
        sock = await proxy.connect(host, port, timeout=CONNECT_TIMEOUT)
    except TimeoutError as error:
        raise TimeoutError(
            f"the egress proxy {egress} did not connect within {CONNECT_TIMEOUT:g} s"
        ) from error
    except OSError as error:
        raise OSError(f"the egress proxy {egress}: {error.strerror or error}") from error
    except ProxyError as error:
        raise ConnectionRefusedError(f"the egress proxy {egress} refused: {error}") from error
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@asynccontextmanager
async def way_out(egress: EgressProxy | None, host: str, port: int) -> AsyncIterator[Bridge | None]:
    """A bridge to `host:port` if the proxy carries it; None means that gRPC goes directly."""
    if egress is None or not egress.carries(host):
        yield None
        return
    async with Bridge(egress, host, port) as bridge:
        yield bridge


class Bridge:
    """An async context manager; `target` is where gRPC has to connect to, `failure` what
    kept the last connection from coming about."""

    def __init__(self, egress: EgressProxy, host: str, port: int) -> None:
        self._egress = egress
        self._host = host
        self._port = port
        self._tasks = TaskSet()
        self._sides: set[RelaySide] = set()
        self.failure: OSError | None = None
        self.target = ""

    async def __aenter__(self) -> Bridge:
        self._folder = tempfile.TemporaryDirectory(prefix="whip-egress-")
        path = Path(self._folder.name) / "broker.sock"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: RelaySide(on_made=self._accepted), str(path)
        )
        self.target = f"unix:{path}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        await self._tasks.cancel_all()
        for side in tuple(self._sides):
            self._drop(side)
        self._folder.cleanup()

    def _accepted(self, side: RelaySide) -> None:
        self._sides.add(side)
        self._tasks.spawn(self._connect(side), f"bridge to {self._host}:{self._port}")

    async def _connect(self, side: RelaySide) -> None:
        try:
            sock = await connect(self._egress, self._host, self._port)
        except OSError as error:
            self.failure = error
            self._drop(side)
            return
        except BaseException:
            self._drop(side)
            raise
        try:
            loop = asyncio.get_running_loop()
            _, tunnel = await loop.create_connection(RelaySide, sock=sock)
        except BaseException:
            sock.close()
            self._drop(side)
            raise
        self.failure = None
        join(side, tunnel, lambda: self._sides.discard(side))

    def _drop(self, side: RelaySide) -> None:
        self._sides.discard(side)
        if side.transport is not None:
            break_off(side.transport)
