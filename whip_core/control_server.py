"""Where agents register: gRPC over HTTP/2, on connections like those of the reverse port.

With grpcio's server a broker holds 90 KB for each agent and takes a millisecond for each
ping, with this one 51 KB and 0.4 ms (docs/benchmarks.md). TLS, certificates and the bounds
for strangers are those of the other ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence

from whip_core.acceptor import Acceptor
from whip_core.agents import Peer
from whip_core.certificates import certificate_names, peer_certificate_der
from whip_core.control_stream import ControlHandler, ControlStream
from whip_core.control_wire import METHOD_PATH
from whip_core.errors import RegistrationError
from whip_core.grpc_calls import CallBegan, CallEnded, GrpcCalls, MessageArrived
from whip_core.limits import Limits
from whip_core.settings import HANDSHAKE_TIMEOUT
from whip_core.sockets import bind
from whip_core.strangers import OnRefused, Stranger, Strangers
from whip_core.tasks import TaskSet
from whip_core.tls import peer_certificate

REMEDY = "choose another with --whip-grpc-listen-port"
STOP_GRACE = 1.0
"""Seconds that agents have to take why their streams ended, when the server stops."""


class ControlServer:
    """Listens for agents. An async context manager; `port` is the bound one.

    `context` gives the TLS context for a new connection; None means plaintext. An agent has
    `register_timeout` seconds for its handshake, and then to register.
    """

    def __init__(
        self,
        handler: ControlHandler,
        hosts: Sequence[str],
        port: int,
        context: Callable[[], ssl.SSLContext] | None,
        *,
        register_timeout: float = HANDSHAKE_TIMEOUT,
        limits: Limits | None = None,
        on_refused: OnRefused = lambda *_: None,
    ) -> None:
        self._handler = handler
        self._hosts = hosts
        self._context = context
        self._register_timeout = register_timeout
        self._limits = limits or Limits()
        self._strangers = Strangers(
            "control port", self._limits.unauthenticated, register_timeout, on_refused
        )
        self._acceptors: list[Acceptor] = []
        self._tasks = TaskSet()
        self._connections: set[_Connection] = set()
        self._unregistered: set[ControlStream] = set()
        self._empty = asyncio.Event()
        self.port = port

    async def __aenter__(self) -> ControlServer:
        sockets = bind(self._hosts, self.port, REMEDY)
        self.port = sockets[0].getsockname()[1]
        self._acceptors = [Acceptor(sock, self._incoming) for sock in sockets]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        for connection in tuple(self._connections):
            connection.close(RegistrationError("the broker is shutting down", code="closing"))
        self._strangers.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE):
                while self._connections:
                    self._empty.clear()
                    await self._empty.wait()
        for connection in tuple(self._connections):
            connection.transport.abort()
        await self._tasks.cancel_all()
        for acceptor in self._acceptors:
            await acceptor.wait_closed()

    def _incoming(self) -> asyncio.BaseProtocol:
        return self._strangers.arrive(
            _Connection(self, self._strangers, self._limits.message_size),
            self._context() if self._context is not None else None,
            self._register_timeout,
        )

    def _lost(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()


class _Connection(Stranger):
    """An agent's connection: the carrier of its control stream, or of several agents' streams.

    It is a stranger until an agent is registered on it. Without any stream it is closed.
    """

    reason = "registration"

    def __init__(self, server: ControlServer, strangers: Strangers, max_message: int) -> None:
        super().__init__(strangers)
        self._server = server
        self._calls = GrpcCalls(METHOD_PATH, max_message)
        self._streams: dict[int, ControlStream] = {}
        self._known = False
        self._peer: Peer | None = None

    @property
    def peer(self) -> Peer:
        """Raises `ValueError` for a certificate that cannot be read."""
        if self._peer is None:
            der = peer_certificate(self.transport)
            self._peer = (
                Peer(self.address, None)
                if der is None
                else Peer(self.address, certificate_names(der), peer_certificate_der(der))
            )
        return self._peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.dropped:
            self._server._connections.add(self)
            self._flush()

    def heard(self, data: bytes) -> None:
        for event in self._calls.receive(data):
            match event:
                case CallBegan(call):
                    self._begin(call)
                case MessageArrived(call, message):
                    self._streams[call].heard(message)
                case CallEnded(call, broken):
                    self._streams[call].finished(broken)
        self._flush()

    def _begin(self, call: int) -> None:
        server = self._server
        stream = ControlStream(self, call, server._handler, server._tasks, server._register_timeout)
        self._streams[call] = stream
        self.stop_waiting()
        most = server._limits.unauthenticated
        if most and len(server._unregistered) >= most:
            why = f"{most} others are yet to register"
            stream.refuse(RegistrationError(why, code="unauthenticated"))
        else:
            server._unregistered.add(stream)

    # The carrier

    def send(self, call: int, message: bytes) -> bool:
        sent = self._calls.send(call, message)
        self._flush()
        return sent

    def end(self, call: int, status: int, text: str) -> None:
        self._calls.end(call, status, text)
        self._flush()

    def registered(self, call: int) -> None:
        self._server._unregistered.discard(self._streams[call])
        self._known = True
        self.leave()

    def over(self, call: int) -> None:
        self._server._unregistered.discard(self._streams.pop(call))
        if not self._streams and not self.transport.is_closing():
            self.wait_for_word()

    # Its end

    def close(self, why: RegistrationError) -> None:
        """End its control streams, and then itself."""
        for stream in tuple(self._streams.values()):
            stream.end(why)
        self._say_goodbye()

    def too_late(self) -> None:
        if self._known:
            self._say_goodbye()
        else:
            super().too_late()

    def farewell(self, why: str) -> bytes:
        self._calls.close()
        return self._calls.to_send()

    def _say_goodbye(self) -> None:
        self._calls.close()
        self._flush()
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server._lost(self)
        for stream in tuple(self._streams.values()):
            stream.finished(str(exc or "the connection was closed"))

    # What is written

    def _flush(self) -> None:
        data = self._calls.to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def pause_writing(self) -> None:
        # Nor read: what is read may want an answer.
        self._calls.held = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._calls.release()
        self._flush()
        self.transport.resume_reading()
