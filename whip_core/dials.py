"""What dials can be asked for as, of a broker in this process and of one elsewhere."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from whip_core.caller import NOBODY, Caller
from whip_core.dial import Tell
from whip_core.errors import UnknownName
from whip_core.forward import Dialled, ForwardSpec, forwarding
from whip_core.names import Target
from whip_core.stream import Stream
from whip_core.stream_reader import BrokenLastReader

READER_LIMIT = 64 * 1024
"""Octets a StreamReader holds before it stops reading (twice that): asyncio's own default."""

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


class Dials(abc.ABC):
    """Opens streams to services by name, in the forms that asyncio's users know.

    Once `_stopping` is set, forwards take no more connections.
    """

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    @abc.abstractmethod
    async def _dial(
        self, host: str, port: int | str, caller: Caller, wait: float, timeout: float | None
    ) -> Stream:
        """A stream without a protocol. Raises `DialError`; cancelled, it leaves nothing."""

    def _begin_dial(
        self, target: Target, caller: Caller, wait: float, tell: Tell
    ) -> Dialled | None:
        """The same for forwards: `tell` gets the stream, or what has to be awaited for it."""
        tell(self._dial(target.name, target.port, caller, wait, None))
        return None

    async def open_connection(
        self,
        host: str,
        port: int | str,
        *,
        caller: Caller = NOBODY,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Like `asyncio.open_connection`: a reader and a writer of a stream to the service.

        Waits up to `wait` seconds for such an agent to appear, then takes up to `timeout`
        seconds (None: the settings' `dial_timeout`). Raises `DialError`; afterwards the
        reader raises `StreamReset` or `StreamCut` if the stream breaks. Cancelled, it
        leaves nothing behind.
        """
        stream = await self._dial(host, port, caller, wait, timeout)
        reader = BrokenLastReader(limit=READER_LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        stream.attach(protocol)
        return reader, asyncio.StreamWriter(stream, protocol, reader, asyncio.get_running_loop())

    async def create_connection(
        self,
        protocol_factory: Callable[[], ProtocolT],
        host: str,
        port: int | str,
        *,
        caller: Caller = NOBODY,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> tuple[Stream, ProtocolT]:
        """Like `loop.create_connection`: a transport with the factory's protocol on it.

        Errors and time as for `open_connection`.
        """
        stream = await self._dial(host, port, caller, wait, timeout)
        try:
            protocol = protocol_factory()
            stream.attach(protocol)
        except BaseException:
            stream.abort()
            raise
        return stream, protocol

    def forward(
        self, host: str, port: int | str, *, listen_host: str = "127.0.0.1", listen_port: int = 0
    ) -> contextlib.AbstractAsyncContextManager[tuple[str, int] | Path]:
        """A local TCP listener for a service: `async with broker.forward(...) as address`.

        Any program on this machine reaches `host:port` at the address it gives, (host,
        port). Port 0 is one the system chooses. Raises `UnknownName` at once for what can be
        no name, and `AddressInUse` when it is entered where somebody listens already.
        """
        try:
            target = Target.parse(host, port)
        except ValueError as error:
            raise UnknownName(str(error)) from error
        return self.forwarding(ForwardSpec(target, listen_host, listen_port))

    def forwarding(
        self, spec: ForwardSpec, *, wait: float = 0.0
    ) -> contextlib.AbstractAsyncContextManager[tuple[str, int] | Path]:
        """The same for a parsed forward, which may also be a unix socket's path."""

        def dial(target: Target, caller: Caller, tell: Tell) -> Dialled | None:
            return self._begin_dial(target, caller, wait, tell)

        return forwarding(spec, dial, self._stopping)
