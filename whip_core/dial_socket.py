"""A broker's dial socket: other processes dial through it, and hear the broker's news.

Who may: on a unix socket whoever may open it (mode 0600: this user), and their word is
taken for whom they dial for. Over TCP a certificate from our CA is needed, and one of its
names has to be among those that may dial: an agent's certificate is from the same CA and
must not reach other agents. Such a program dials as itself; only a proxy that is trusted
with it may say for whom (`Diallers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from whip_core import tls_transport
from whip_core.acceptor import Acceptor
from whip_core.caller import Caller
from whip_core.certificates import certificate_names, covers
from whip_core.dial_address import DialAddress
from whip_core.dial_wire import (
    Ask,
    HelloReader,
    Served,
    asks_for_news,
    decode_ask,
    encode_served,
    failure_code,
)
from whip_core.errors import DialError, RemoteProtocolError, SettingsError
from whip_core.framed import FramedConnection
from whip_core.frames import FrameCodec, OpenRequested, Role
from whip_core.relay import splice
from whip_core.sockets import bind, bind_unix, duplex, peer_address
from whip_core.stream import Stream
from whip_core.tasks import TaskSet
from whip_core.tls import peer_certificate

logger = logging.getLogger(__name__)

HELLO_TIMEOUT = 5.0
"""Seconds a program has, once connected, to say hello: as agents have for their preamble."""


class DialHandler(Protocol):
    """Who dials, and who knows the news."""

    async def dial(self, ask: Ask) -> tuple[Stream, Served]:
        """Raises `DialError`. Cancelled, it leaves nothing behind."""

    async def tell_news(self, writer: asyncio.StreamWriter) -> None:
        """Write news until it is cancelled or the writer's other end is gone (`OSError`)."""


@dataclass(frozen=True, slots=True)
class Diallers:
    """Names of certificates, or `*.rest`, whose holders may dial over TCP.

    `trusted` ones may also say on whose behalf; the others dial as themselves.
    """

    allowed: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()

    def admits(self, names: Sequence[str]) -> bool:
        return _has_one_of(names, (*self.allowed, *self.trusted))

    def caller(self, said: Caller, names: tuple[str, ...], address: tuple[str, int]) -> Caller:
        """Who dials, as far as it is believed of the holder of a certificate for `names`."""
        if _has_one_of(names, self.trusted):
            return dataclasses.replace(said, dialled_by=names)
        return Caller(
            address=address,
            certificate_names=names,
            request=said.request,
            request_id=said.request_id,
            dialled_by=names,
        )


def _has_one_of(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """A wildcard certificate is not good for each name it covers: it has the name it shows."""
    return any(name == pattern or covers([pattern], name) for name in names for pattern in patterns)


class DialSocket:
    """Listens at `addresses`. An async context manager; `bound` is where it listens."""

    def __init__(
        self,
        handler: DialHandler,
        addresses: Sequence[DialAddress],
        context: Callable[[], ssl.SSLContext] | None,
        admission: Diallers,
        *,
        handshake_timeout: float,
    ) -> None:
        self._handler = handler
        self._addresses = addresses
        self._context = context
        self._admission = admission
        self._handshake_timeout = handshake_timeout
        self._acceptors: list[Acceptor] = []
        self._tasks = TaskSet()
        self._connections: set[_Greeting | _Dialler] = set()
        self.bound: list[DialAddress] = []

    async def __aenter__(self) -> DialSocket:
        try:
            for address in self._addresses:
                await self._listen(address)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Take no more programs and dials, and drop those that are connected."""
        for acceptor in self._acceptors:
            acceptor.close()
        for connection in tuple(self._connections):
            connection.drop()
        await self._tasks.cancel_all()
        for address in self.bound:
            if address.path is not None:
                address.path.unlink(missing_ok=True)
        self.bound.clear()

    async def _listen(self, address: DialAddress) -> None:
        if address.path is not None:
            sock = bind_unix(address.path, "choose another --dial-listen")
            self._acceptors.append(Acceptor(sock, lambda: _Greeting(self, None)))
            self.bound.append(address)
            return
        if self._context is None:
            raise SettingsError(f"a dial socket at {address} needs TLS: without it, use unix:/path")
        if not (self._admission.allowed or self._admission.trusted):
            raise SettingsError(
                f"say who may dial at {address}: --dial-allow or --dial-trust NAME, "
                "a name in the certificates of those programs"
            )
        sockets = bind([address.host], address.port, "choose another --dial-listen")
        for sock in sockets:
            self._acceptors.append(Acceptor(sock, self._over_tls))
        self.bound.append(dataclasses.replace(address, port=sockets[0].getsockname()[1]))

    def _over_tls(self) -> asyncio.BaseProtocol:
        assert self._context is not None
        return tls_transport.Accepting(
            _Greeting(self, self._admission),
            self._context(),
            handshake_timeout=self._handshake_timeout,
            on_failure=self._no_handshake,
        )

    def _no_handshake(self, address: tuple[str, int], error: Exception) -> None:
        logger.warning("dial socket: no TLS handshake with %s port %d: %s", *address, error)


class _Greeting(asyncio.Protocol):
    """A connection from its handshake to its hello. `admission` is None on a unix socket."""

    def __init__(self, owner: DialSocket, admission: Diallers | None) -> None:
        self._owner = owner
        self._admission = admission
        self._reader = HelloReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = duplex(transport)
        self._address = peer_address(transport)
        self._owner._connections.add(self)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(HELLO_TIMEOUT, self._too_late)

    def data_received(self, data: bytes) -> None:
        try:
            names = self._names()
            if not self._reader.feed(data):
                return
        except (RemoteProtocolError, ValueError) as error:  # ValueError: its certificate
            self._refuse(str(error))
            return
        self._leave()
        dialler = _Dialler(self._owner, self._admission, names, self._address)
        self._transport.set_protocol(dialler.connection)
        dialler.connection.connection_made(self._transport)
        if self._reader.rest:
            dialler.connection.data_received(self._reader.rest)

    def _names(self) -> tuple[str, ...]:
        if self._admission is None:
            return ()
        certificate = peer_certificate(self._transport)
        names = certificate_names(certificate) if certificate is not None else ()
        if not self._admission.admits(names):
            shown = ", ".join(names) or "no name at all"
            raise RemoteProtocolError(
                f"its certificate is for {shown}, which may not dial here "
                "(the broker's --dial-allow and --dial-trust say which may)"
            )
        return names

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def drop(self) -> None:
        self._transport.abort()

    def _too_late(self) -> None:
        self._refuse(f"said nothing useful for {HELLO_TIMEOUT:g} s")

    def _refuse(self, why: str) -> None:
        logger.warning("dial socket: refused %s port %d: %s", *self._address, why)
        self._leave()
        self._transport.write(FrameCodec(Role.ACCEPTOR).reset(f"refused: {why}"))
        self._transport.close()

    def _leave(self) -> None:
        self._deadline.cancel()
        self._owner._connections.discard(self)


class _Dialler:
    """One connection of a program that dials, behind its hello."""

    def __init__(
        self,
        owner: DialSocket,
        admission: Diallers | None,
        names: tuple[str, ...],
        address: tuple[str, int],
    ) -> None:
        self._owner = owner
        self._admission = admission
        self._names = names
        self._address = address
        self.connection = FramedConnection(
            Role.ACCEPTOR,
            on_open=self._asked,
            on_lost=lambda _: owner._connections.discard(self),
            dial_socket=True,
        )
        owner._connections.add(self)

    def drop(self) -> None:
        self.connection.close()

    def _asked(self, connection: FramedConnection, request: OpenRequested) -> asyncio.Task[None]:
        work = self._news() if asks_for_news(request.name) else self._dial(request)
        task = self._owner._tasks.spawn(work, f"dial {request.dial_id.hex()[:8]} of a socket")

        def close_unanswered(task: asyncio.Task[None]) -> None:
            if task.cancelled() or task.exception() is not None:
                connection.close()  # who dials must not wait for an answer

        task.add_done_callback(close_unanswered)
        return task

    async def _dial(self, request: OpenRequested) -> None:
        try:
            stream, served = await self._owner._handler.dial(self._read(request))
        except DialError as error:
            self.connection.refuse(failure_code(error), str(error))
            return
        splice(stream, self.connection, encode_served(served))

    def _read(self, request: OpenRequested) -> Ask:
        try:
            ask = decode_ask(request.name, request.port)
        except RemoteProtocolError as error:
            raise DialError(f"the dial socket was asked for something odd: {error}") from error
        if self._admission is None:
            return ask
        caller = self._admission.caller(ask.caller, self._names, self._address)
        return dataclasses.replace(ask, caller=caller)

    async def _news(self) -> None:
        stream = self.connection.accept(extra={})
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        stream.attach(protocol)
        writer = asyncio.StreamWriter(stream, protocol, reader, asyncio.get_running_loop())
        telling = self._owner._tasks.spawn(self._owner._handler.tell_news(writer), "dial news")
        try:
            with contextlib.suppress(OSError):
                await reader.read()  # nothing comes but the end
        finally:
            telling.cancel()
            writer.close()
