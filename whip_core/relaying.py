"""Streams to agents that cannot reach the broker that dials: by way of the one that holds them.

The two brokers agree over the fabric: the holder gives a *pass*, which says where its reverse
listener is and with what secret, once, within seconds, a connection from the broker that dials
is let in there. On that connection, which carries this one stream, they speak frames: the
dialling broker is the opener. The holder opens a stream to the agent as for a dial of its own
and relays; ends, resets and back-pressure go through.

Each side has to allow it (--relay), because whoever relays sees what goes through. Each shows
the certificate of a broker, the one that connects too: it must be good for a server *and* for
a client, so an agent's certificate opens nothing here, whatever secret its holder has.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from whip_core import preamble, tls_transport
from whip_core.awaited import OnFinished
from whip_core.caller import Caller
from whip_core.certificates import certificate_names, is_servers, proves_host
from whip_core.credentials import Credentials
from whip_core.dial_wire import encode_failure, failure
from whip_core.dialer import Dialer
from whip_core.errors import AgentGone, DialError, PortNotExposed, RemoteProtocolError
from whip_core.fabric_wire import number, text
from whip_core.framed import FramedConnection
from whip_core.frames import OpenRequested, Side
from whip_core.names import Target, host_port
from whip_core.preamble import Preamble
from whip_core.relay import splice
from whip_core.reverse_listener import Arrival
from whip_core.session import Session
from whip_core.settings import require_plaintext_allowed
from whip_core.sockets import peer_address
from whip_core.stream import Stream
from whip_core.tasks import TaskSet
from whip_core.tls import peer_certificate

logger = logging.getLogger(__name__)

PASS_LIFE = 15.0
"""Seconds that a pass is good for: more than a whole dial has."""
MAX_PASSES = 4096
"""Passes that are waited for; the oldest go. As many dials may be under way at once."""
SECRET_SIZE = 16
"""Octets of a pass's id and of its secret: 128 random bits."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What lets one stream in at a broker that relays it."""

    host: str
    port: int
    pass_id: str
    secret: str

    def __repr__(self) -> str:
        return f"<Pass {self.pass_id[:8]} at {host_port(self.host, self.port)}>"

    def encode(self) -> dict[str, Any]:
        return {"host": self.host, "port": self.port, "pass": self.pass_id, "secret": self.secret}

    @classmethod
    def decode(cls, told: Mapping[str, Any]) -> Pass:
        """Raises `RemoteProtocolError`."""
        body = dict(told)
        return cls(
            text(body, "host"), number(body, "port"), text(body, "pass"), text(body, "secret")
        )


@dataclass(frozen=True, slots=True)
class Errand:
    """A dial of another broker's that was allowed, to an agent of ours."""

    broker_id: str
    session: Session
    target: Target
    caller: Caller
    port: int
    """The agent's exposed one."""
    dial: str
    """The other broker's id for it."""


class CannotRelay(AgentGone):
    """The broker that gave a pass cannot be reached, or is not the one that it says."""


class Relaying:
    """Both ends of it, for one broker. `credentials` of None mean plaintext."""

    def __init__(
        self,
        dialer: Dialer,
        reverse_address: Callable[[], tuple[str, int]],
        credentials: Credentials | None,
        *,
        allow_plaintext: bool,
        timeout: float,
    ) -> None:
        self._dialer = dialer
        self._reverse_address = reverse_address
        self._credentials = credentials
        self._allow_plaintext = allow_plaintext
        self._timeout = timeout
        self._expected: dict[str, tuple[Pass, Errand]] = {}
        self._connections: set[FramedConnection] = set()
        self._tasks = TaskSet()

    def __repr__(self) -> str:
        return f"<Relaying expected={len(self._expected)} open={len(self._connections)}>"

    async def close(self) -> None:
        """Let nobody in any more, and cut what is relayed."""
        await self._tasks.cancel_all()
        for connection in tuple(self._connections):
            connection.close()

    # The broker that holds the agent

    def admit(self, errand: Errand) -> Pass:
        """Let one stream in for the errand, within `PASS_LIFE`."""
        host, port = self._reverse_address()
        one = Pass(host, port, secrets.token_hex(SECRET_SIZE), secrets.token_hex(SECRET_SIZE))
        if len(self._expected) >= MAX_PASSES:
            del self._expected[next(iter(self._expected))]
        self._expected[one.pass_id] = one, errand
        loop = asyncio.get_running_loop()
        loop.call_later(PASS_LIFE, self._expected.pop, one.pass_id, None)
        return one

    def welcome(self, arrival: Arrival) -> bool:
        """Take in a broker that comes with a pass; False if it is none.

        Raises `RemoteProtocolError` for one that must not be let in.
        """
        shown = arrival.preamble
        if not isinstance(shown, Preamble) or shown.session_id not in self._expected:
            return False
        one, errand = self._expected.pop(shown.session_id)
        if not hmac.compare_digest(shown.secret.encode(), one.secret.encode()):
            raise RemoteProtocolError("a relayed stream with a wrong secret")
        if self._credentials is not None and not (
            arrival.certificate is not None and is_servers(arrival.certificate)
        ):
            raise RemoteProtocolError("a relayed stream from a peer without a broker's certificate")
        connection = FramedConnection(
            Side.ACCEPTOR,
            on_open=lambda connection, request: self._asked(connection, request, errand),
            on_idle=FramedConnection.close,
            on_lost=self._connections.discard,
            dial_socket=True,
        )
        self._connections.add(connection)
        arrival.adopt(connection)
        return True

    def _asked(
        self, connection: FramedConnection, request: OpenRequested, errand: Errand
    ) -> asyncio.Task[None]:
        return self._tasks.spawn(
            self._carry(connection, request, errand), f"relay {errand.dial[:8]}"
        )

    async def _carry(
        self, connection: FramedConnection, request: OpenRequested, errand: Errand
    ) -> None:
        try:
            if request.port != errand.port:
                raise PortNotExposed(f"port {request.port} is not what was allowed")
            stream = await self._dialer.relay(
                errand.session,
                errand.port,
                target=errand.target,
                caller=errand.caller,
                timeout=self._timeout,
                relayed_for=errand.broker_id,
                relayed_dial=errand.dial,
            )
        except DialError as error:
            code, why = encode_failure(error)
            connection.refuse(code, why.replace(f"{errand.target}: ", "", 1))
            return
        splice(stream, connection)

    # The broker that dials

    async def open(
        self,
        one: Pass,
        port: int,
        dial_id: bytes,
        *,
        extra: Mapping[str, Any],
        on_finished: OnFinished,
    ) -> Stream:
        """A stream to the agent's exposed `port`, by way of the broker that gave the pass.

        Raises `CannotRelay`, or the `DialError` that it met. Cancelled, it leaves nothing behind.
        """
        connection = FramedConnection(
            Side.OPENER,
            on_idle=FramedConnection.close,
            on_lost=self._connections.discard,
            dial_socket=True,
            failure=failure,
        )
        try:
            transport = await self._connect(connection, one.host, one.port)
        except (OSError, ValueError) as error:
            raise CannotRelay(
                f"we cannot connect to {host_port(one.host, one.port)}: {error}"
            ) from error
        self._connections.add(connection)
        transport.write(preamble.encode(Preamble(one.pass_id, one.secret)))
        extra = {**extra, "peername": peer_address(transport)}
        try:
            return await connection.open(port, dial_id, extra=extra, on_finished=on_finished)
        except BaseException:
            connection.close()
            raise

    async def _connect(
        self, connection: FramedConnection, host: str, port: int
    ) -> asyncio.Transport:
        if self._credentials is None:
            require_plaintext_allowed("connect to", host, self._allow_plaintext)
            loop = asyncio.get_running_loop()
            plain, _ = await loop.create_connection(lambda: connection, host, port)
            return plain
        secured = await tls_transport.connect(
            connection,
            host,
            port,
            self._credentials.client_context(),
            handshake_timeout=self._timeout,
        )
        try:
            proven = self._is_proven(peer_certificate(secured), host, self._credentials.names)
        except ValueError:
            secured.abort()
            raise
        if not proven:
            secured.abort()
            raise ValueError("its certificate proves neither that name nor one of ours")
        return secured

    @staticmethod
    def _is_proven(certificate: bytes | None, host: str, ours: tuple[str, ...]) -> bool:
        """Whether it is that host, or one behind the same endpoint as we are."""
        return certificate is not None and (
            proves_host(certificate, host)
            or not set(ours).isdisjoint(certificate_names(certificate))
        )
