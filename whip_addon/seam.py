"""The one call in mitmproxy that opens TCP connections, and how a dial takes its place.

`ConnectionHandler.open_connection` in mitmproxy/proxy/server.py calls
`asyncio.open_connection(*address, local_addr=...)`. While the seam is installed, the name
`asyncio` of that module is an object that offers the dial under that one name and passes
everything else through. All that mitmproxy does around the call stays as it is, client
replay uses it too, and an error in it is an upstream error: it fails closed.
"""

from __future__ import annotations

import asyncio
import dis
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from mitmproxy import version
from mitmproxy.proxy import server

from whip_core.errors import WhipError

Dial = Callable[[str, int, tuple[str, int] | None], Awaitable[tuple[Any, Any]]]
"""`await dial(host, port, local_addr)` gives what `asyncio.open_connection` gives.

It raises `OSError` and nothing else: mitmproxy handles no other error there.
"""


class SeamNotFound(WhipError):
    """This mitmproxy opens its connections in another way: whip cannot work in it."""


class SeamTaken(WhipError):
    """Another addon is at the seam of this process already."""


class _AsyncioWithDial:
    """What mitmproxy.proxy.server sees as `asyncio`."""

    def __init__(self, dial: Dial) -> None:
        self.dial = dial
        self.retired = False

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def open_connection(
        self, host: str, port: int, *, local_addr: tuple[str, int] | None = None
    ) -> tuple[Any, Any]:
        return await self.dial(host, port, local_addr)


def check() -> None:
    """Raises `SeamNotFound` unless mitmproxy's code is as the seam needs it."""
    handler = getattr(server, "ConnectionHandler", None)
    code = getattr(getattr(handler, "open_connection", None), "__code__", None)
    if code is None or not any(
        first.opname == "LOAD_GLOBAL"
        and (first.argval, second.argval) == ("asyncio", "open_connection")
        for first, second in pairwise(dis.get_instructions(code))
    ):
        raise SeamNotFound(
            f"mitmproxy {version.VERSION} opens its connections in a way that whip does not "
            "know: use a version that `pip install 'whip-tunnel[proxy]'` allows"
        )


def is_taken() -> bool:
    """Whether a dial is in place, or somebody else has been here."""
    present = vars(server).get("asyncio")
    retired = isinstance(present, _AsyncioWithDial) and present.retired
    return present is not asyncio and not retired


def install(dial: Dial) -> None:
    """Let `dial` open mitmproxy's TCP connections. Raises `SeamNotFound` or `SeamTaken`."""
    check()
    if is_taken():
        raise SeamTaken(
            "this mitmproxy already opens its connections through another addon: "
            "load whip's addon once"
        )
    vars(server)["asyncio"] = _AsyncioWithDial(dial)


def retire(dial: Dial) -> None:
    """Keep `dial` in place, but let the next `install` replace it."""
    present = vars(server).get("asyncio")
    if isinstance(present, _AsyncioWithDial) and present.dial == dial:
        present.retired = True


def uninstall(dial: Dial) -> None:
    """Put mitmproxy's own way back, unless another dial has taken the place of `dial`."""
    present = vars(server).get("asyncio")
    if isinstance(present, _AsyncioWithDial) and present.dial == dial:
        vars(server)["asyncio"] = asyncio


@contextmanager
def installed(dial: Dial) -> Iterator[None]:
    install(dial)
    try:
        yield
    finally:
        uninstall(dial)
