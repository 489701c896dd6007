"""A broker's dial socket: other processes dial through it, and hear the broker's news.

Who may: on a unix socket whoever may open it (mode 0600: this user), and their word is
taken for whom they dial for. Over TCP a certificate from our CA is needed, and one of its
names has to be among those that may dial: an agent's certificate is from the same CA and
must not reach other agents. Such a program dials as itself; only a proxy that is trusted
with it may say for whom (`DialAccess`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from whip_core.acceptor import Acceptor
from whip_core.agents import Peer, PeerCertificate
from whip_core.caller import Caller
from whip_core.certificates import certificate_names, peer_certificate_der
from whip_core.dial_address import DialAddress
from whip_core.dial_wire import (
    REFUSED,
    Ask,
    HelloReader,
    Served,
    asks_for_news,
    decode_ask,
    encode_failure,
    encode_served,
)
from whip_core.errors import DialError, RemoteProtocolError, SettingsError
from whip_core.framed import FramedConnection
from whip_core.frames import FrameCodec, OpenRequested, Side
from whip_core.host_patterns import covers
from whip_core.relay import splice
from whip_core.sockets import bind, bind_unix
from whip_core.strangers import OnRefused, Stranger, Strangers
from whip_core.stream import Stream
from whip_core.tasks import TaskSet
from whip_core.tls import peer_certificate

logger = logging.getLogger(__name__)


class DialHandler(Protocol):
    """Who dials, and who knows the news."""

    async def dial(self, ask: Ask) -> tuple[Stream, Served]:
        """Raises `DialError`. Cancelled, it leaves nothing behind."""

    async def tell_news(self, writer: asyncio.StreamWriter) -> None:
        """Write news until it is cancelled or the writer's other end is gone (`OSError`)."""


@dataclass(frozen=True, slots=True)
class DialAccess:
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


def check_address(address: DialAddress, access: DialAccess, *, has_tls: bool) -> None:
    """Raises `SettingsError` unless it is clear who may dial at `address`."""
    if address.path is not None:
        return
    if not has_tls:
        raise SettingsError(f"a dial socket at {address} needs TLS: without it, use unix:/path")
    if not (access.allowed or access.trusted):
        raise SettingsError(
            f"say who may dial at {address}: --dial-allow or --dial-trust NAME, "
            "a name in the certificates of those programs"
        )


class DialSocket:
    """Listens at `addresses`. An async context manager; `bound` is where it listens."""

    def __init__(
        self,
        handler: DialHandler,
        addresses: Sequence[DialAddress],
        context: Callable[[], ssl.SSLContext] | None,
        access: DialAccess,
        *,
        handshake_timeout: float,
        hello_timeout: float,
        most_strangers: int,
        on_refused: OnRefused,
    ) -> None:
        """The last three are for peers yet to say hello, at each address (`strangers`)."""
        self._handler = handler
        self._addresses = addresses
        self._context = context
        self._access = access
        self._handshake_timeout = handshake_timeout
        self._hello_timeout = hello_timeout
        self._most_strangers = most_strangers
        self._on_refused = on_refused
        self._acceptors: list[Acceptor] = []
        self._strangers: list[Strangers] = []
        self._tasks = TaskSet()
        self._connections: set[_DialConnection] = set()
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
            await acceptor.wait_closed()
        for strangers in self._strangers:
            strangers.close()
        for connection in tuple(self._connections):
            connection.drop()
        await self._tasks.cancel_all()
        for address in self.bound:
            if address.path is not None:
                address.path.unlink(missing_ok=True)
        self.bound.clear()

    def end_unbelieved(self, problem: Callable[[PeerCertificate | None], str | None]) -> None:
        """End the connections whose certificate has a `problem` by now: as agents' sessions
        are ended, so that no dial begins and no news is told, but what is open may finish.
        """
        for connection in tuple(self._connections):
            peer = connection.peer
            if not connection.ended and (why := problem(peer.certificate)) is not None:
                who = ", ".join(peer.certificate_names or ())
                logger.warning("%s at %s port %d dials no more: %s", who, *peer.address, why)
                connection.end()

    async def _listen(self, address: DialAddress) -> None:
        if address.path is not None:
            sock = bind_unix(address.path, "choose another --dial-listen")
            self._accept([sock], None, None)
            self.bound.append(address)
            return
        check_address(address, self._access, has_tls=self._context is not None)
        sockets = bind([address.host], address.port, "choose another --dial-listen")
        self._accept(sockets, self._context, self._access)
        self.bound.append(dataclasses.replace(address, port=sockets[0].getsockname()[1]))

    def _accept(
        self,
        sockets: Sequence[socket.socket],
        context: Callable[[], ssl.SSLContext] | None,
        access: DialAccess | None,
    ) -> None:
        strangers = Strangers(
            "dial socket", self._most_strangers, self._hello_timeout, self._on_refused
        )

        def arrived() -> asyncio.BaseProtocol:
            return strangers.arrive(
                _Greeting(self, strangers, access),
                context() if context is not None else None,
                self._handshake_timeout,
            )

        self._strangers.append(strangers)
        self._acceptors.extend(Acceptor(sock, arrived) for sock in sockets)


class _Greeting(Stranger):
    """A connection from its acceptance to its hello. `access` is None on a unix socket."""

    reason = "hello"

    def __init__(self, owner: DialSocket, strangers: Strangers, access: DialAccess | None) -> None:
        super().__init__(strangers)
        self._owner = owner
        self._access = access
        self._reader = HelloReader()

    def heard(self, data: bytes) -> None:
        names: tuple[str, ...] = ()
        der = peer_certificate(self.transport)
        if self._access is not None:
            names = certificate_names(der) if der is not None else ()
            if not self._access.admits(names):
                shown = ", ".join(names) or "no name at all"
                self.refuse(
                    "not-authorized",
                    f"its certificate is for {shown}, which may not dial here "
                    "(the broker's --dial-allow and --dial-trust say which may)",
                )
                return
        if self._reader.feed(data):
            certificate = peer_certificate_der(der) if der is not None else None
            peer = Peer(self.address, names, certificate)
            dialing = _DialConnection(self._owner, self._access, peer)
            self.become(dialing.connection, self._reader.rest)

    def farewell(self, why: str) -> bytes:
        return FrameCodec(Side.ACCEPTOR).reset(f"{REFUSED}{why}")


class _DialConnection:
    """One connection of a program that dials, behind its hello."""

    def __init__(
        self,
        owner: DialSocket,
        access: DialAccess | None,
        peer: Peer,
    ) -> None:
        self._owner = owner
        self._access = access
        self.peer = peer
        self._serves = False
        self.ended = False
        self.connection = FramedConnection(
            Side.ACCEPTOR,
            on_open=self._asked,
            on_idle=self._idle,
            on_lost=lambda _: owner._connections.discard(self),
            dial_socket=True,
        )
        owner._connections.add(self)

    def drop(self) -> None:
        self.connection.close()

    def end(self) -> None:
        """Take no dial any more, and give no news; a stream that is open may finish."""
        self.ended = True
        if not self._serves:
            self.connection.close()

    def _idle(self, connection: FramedConnection) -> None:
        self._serves = False
        if self.ended:
            connection.close()

    def _asked(self, connection: FramedConnection, request: OpenRequested) -> asyncio.Task[None]:
        work = self._news() if asks_for_news(request.name) else self._dial(request)
        return self._owner._tasks.spawn(work, f"dial {request.dial_id.hex()[:8]} of a socket")

    async def _dial(self, request: OpenRequested) -> None:
        try:
            stream, served = await self._owner._handler.dial(self._read(request))
        except DialError as error:
            self.connection.refuse(*encode_failure(error))
            return
        self._serves = not self.connection.lost
        splice(stream, self.connection, encode_served(served))

    def _read(self, request: OpenRequested) -> Ask:
        try:
            ask = decode_ask(request.name, request.port)
        except RemoteProtocolError as error:
            raise DialError(f"malformed dial request: {error}") from error
        if self._access is None:
            return ask
        caller = self._access.caller(
            ask.caller, self.peer.certificate_names or (), self.peer.address
        )
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
