"""Local listeners whose connections are relayed to a service behind an agent.

No HTTP and no mitmproxy: what psql, ssh or redis-cli sends arrives as it is, both
directions end separately, and a reset stays a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from whip_core.acceptor import Acceptor
from whip_core.caller import Caller
from whip_core.dial import Tell
from whip_core.errors import DialError, SettingsError
from whip_core.host_patterns import address_or_none
from whip_core.names import Target, host_port
from whip_core.relay import RelaySide, break_off, join
from whip_core.settings import is_loopback
from whip_core.sockets import accepted_reset_if_we_die, bind, bind_unix, peer_address
from whip_core.stream import Stream
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)


class Dialled(Protocol):
    """A dial under way that nobody awaits."""

    def cancel(self) -> object:
        """Leave nothing behind, and tell nobody."""


Dial = Callable[[Target, Caller, Tell], Dialled | None]
"""Begins a dial; None if it has told something already."""


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """One forward: a port on `host`, or a unix socket at `path`, leads to `target`."""

    target: Target
    host: str = "127.0.0.1"
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> ForwardSpec:
        """Read `LISTEN:NAME:PORT`; LISTEN is a port, `host:port` or `unix:/path`.

        Raises `SettingsError`, one line that says what to write instead.
        """
        listen, _, target_port = text.rpartition(":")
        listen, colon, name = listen.rpartition(":")
        if not colon or not listen:
            raise _wrong(text, "it has too few parts")
        try:
            target = Target.parse(name, _port(target_port))
            if address_or_none(target.name) is not None:
                raise ValueError("whip reaches names, not addresses")
            if listen.startswith("unix:"):
                path = listen.removeprefix("unix:")
                if not path:
                    raise ValueError("the socket's path is missing")
                return cls(target, path=Path(path).expanduser())
            host, _, port = listen.rpartition(":")
            return cls(target, host.strip("[]") or "127.0.0.1", _port(port, lowest=0))
        except (ValueError, RuntimeError) as error:  # RuntimeError: nobody's home
            raise _wrong(text, str(error)) from error

    def __str__(self) -> str:
        listen = f"unix:{self.path}" if self.path else host_port(self.host, self.port)
        return f"{listen} to {self.target}"


@contextlib.asynccontextmanager
async def forwarding(
    spec: ForwardSpec, dial: Dial, stopping: asyncio.Event | None = None
) -> AsyncIterator[tuple[str, int] | Path]:
    """Listen while the block runs; gives the address, `(host, port)` or the socket's path.

    Once `stopping` is set no more connections are taken, and those that run go on.

    Each connection is dialled for by itself; one whose dial fails is reset, and a log line
    says why. At the end no more are taken and those that run are cut. Raises
    `SettingsError` if the address cannot be used.
    """
    listener = _Listener(spec.target, dial)
    if spec.path is not None:
        sockets = [bind_unix(spec.path)]
        address: tuple[str, int] | Path = spec.path
    else:
        if not is_loopback(spec.host):
            logger.warning("%s: whoever reaches this machine reaches the service", spec)
        sockets = bind([spec.host], spec.port, "choose another LISTEN")
        host, port = sockets[0].getsockname()[:2]
        address = host, port
        spec = dataclasses.replace(spec, port=port)
    for sock in sockets:
        accepted_reset_if_we_die(sock)
    acceptors = [Acceptor(sock, listener.accept) for sock in sockets]
    logger.info("forwarding %s", spec)
    tasks = TaskSet()
    if stopping is not None:
        tasks.spawn(_close_when(stopping, acceptors), f"stop forwarding {spec}")
    try:
        yield address
    finally:
        await tasks.cancel_all()
        for acceptor in acceptors:
            acceptor.close()
            await acceptor.wait_closed()
        await listener.close()
        if spec.path is not None:
            spec.path.unlink(missing_ok=True)


async def _close_when(stopping: asyncio.Event, acceptors: Sequence[Acceptor]) -> None:
    await stopping.wait()
    for acceptor in acceptors:
        acceptor.close()


class _Listener:
    """What the connections of one forward share."""

    def __init__(self, target: Target, dial: Dial) -> None:
        self._target = target
        self._dial = dial
        self._tasks = TaskSet()
        self._sides: dict[RelaySide, Dialled | None] = {}
        """And their dials, as far as they are under way."""

    def accept(self) -> RelaySide:
        return RelaySide(self._accepted, on_gone=self._gone, resets=True)

    def _accepted(self, side: RelaySide) -> None:
        assert side.transport is not None
        self._sides[side] = None
        caller = Caller(address=peer_address(side.transport))
        dial = self._dial(self._target, caller, partial(self._told, side))
        if dial is not None:
            self._sides[side] = dial

    def _told(self, side: RelaySide, dialled: Stream | Coroutine[Any, Any, Stream]) -> None:
        if isinstance(dialled, Stream):
            self._join(side, dialled)
            return
        task = self._tasks.spawn(self._connect(side, dialled), f"forward to {self._target}")
        task.add_done_callback(lambda _: dialled.close())  # it may not even have begun
        self._sides[side] = task

    async def _connect(self, side: RelaySide, dial: Coroutine[Any, Any, Stream]) -> None:
        try:
            stream = await dial
        except DialError:
            self._drop(side)  # the dialer has logged why
            return
        except BaseException:
            self._drop(side)
            raise
        self._join(side, stream)

    def _join(self, side: RelaySide, stream: Stream) -> None:
        self._sides[side] = None
        tunnel = RelaySide()
        stream.attach(tunnel)
        join(side, tunnel, partial(self._forget, side))

    def _forget(self, side: RelaySide) -> None:
        self._sides.pop(side, None)

    def _gone(self, side: RelaySide) -> None:
        """A client did not wait for its dial: nobody else wants it."""
        dial = self._sides.pop(side, None)
        if dial is not None:
            dial.cancel()

    def _drop(self, side: RelaySide) -> None:
        self._forget(side)
        if side.transport is not None:
            break_off(side.transport)

    async def close(self) -> None:
        await self._tasks.cancel_all()
        for side, dial in tuple(self._sides.items()):
            if dial is not None:
                dial.cancel()
            self._drop(side)


def _port(text: str, lowest: int = 1) -> int:
    if not (text.isascii() and text.isdigit() and lowest <= int(text) <= 65535):
        raise ValueError(f"{text[:20]!r} is not a port ({lowest} to 65535)")
    return int(text)


def _wrong(text: str, why: str) -> SettingsError:
    return SettingsError(
        f"{text[:80]!r} is not a forward ({why}); write LISTEN:NAME:PORT, "
        "such as 15432:db1.testdom:5432 or unix:/tmp/db.sock:db1.testdom:5432"
    )
