"""The broker's gRPC service: pumps messages between agents and whoever handles them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
import grpc.aio

from whip_core import control
from whip_core.agents import Peer
from whip_core.certificates import certificate_names_pem, peer_certificate_pem
from whip_core.control_wire import (
    METHOD,
    SERVICE,
    decode_agent_message,
    encode_broker_message,
)
from whip_core.errors import RegistrationError, RemoteProtocolError, SettingsError
from whip_core.limits import Limits
from whip_core.names import MAX_NAME_LENGTH, host_port, printable
from whip_core.outbox import Outbox
from whip_core.settings import HANDSHAKE_TIMEOUT
from whip_core.sockets import bind
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

REMEDY = "choose another with --whip-grpc-listen-port"
LEAN = [
    # Octets of a TLS record that is sent, and of a buffer that is held for each agent. Its
    # default, 16 KiB, is for bulk; this is the least it takes, and room for most messages.
    ("grpc.tsi.max_frame_size", 1024),
    # A record of each connection's events, for a service that is not offered here.
    ("grpc.enable_channelz", 0),
]
"""What gRPC need not hold for each agent: 9 KB of 88 (`bench.floor`)."""
CANCELLED_WITHIN = 0.1
"""Seconds after the last message in which gRPC says if the stream was cancelled, or the
connection lost: to who reads, both look like an end. Agents of ours say so before they close."""
STOP_GRACE = 1.0
"""Seconds that ended streams have to tell their agents why, when the server stops."""

_STATUS = {
    "name-taken": grpc.StatusCode.ALREADY_EXISTS,
    "not-authorized": grpc.StatusCode.PERMISSION_DENIED,
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "replaced": grpc.StatusCode.ABORTED,
    "kicked": grpc.StatusCode.ABORTED,
    "unresponsive": grpc.StatusCode.ABORTED,
    "already-registered": grpc.StatusCode.ABORTED,
    "certificate": grpc.StatusCode.PERMISSION_DENIED,
    "closing": grpc.StatusCode.UNAVAILABLE,
    "agents": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "agents-per-identity": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unauthenticated": grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""The status by which a control stream ends; agents tell by it whether to come back soon."""


class ControlHandler(Protocol):
    """Who decides about control streams. `session` is whatever `register` returned."""

    async def register(self, stream: ControlStream, message: control.Register) -> Any:
        """Let the agent in, or raise `RegistrationError`."""

    def received(self, session: Any, message: control.AgentMessage) -> None:
        """May raise `RemoteProtocolError`, which ends the stream."""

    def left(self, session: Any, reason: str) -> None:
        """The stream of a registered agent has ended."""

    def refused(self, peer: Peer, name: str, why: RegistrationError) -> None:
        """A stream is ended by `why` before any agent was registered on it.

        `name` is what it wanted to be registered as, empty if it did not say.
        """


class ControlStream:
    """The broker's end of one agent's control stream."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], tasks: TaskSet) -> None:
        self._outbox = Outbox(context.write, tasks)
        self._ended: asyncio.Future[RegistrationError | None] = (
            asyncio.get_running_loop().create_future()
        )
        self.claimed = ""
        self.peer = _peer(context)

    def send(self, message: control.BrokerMessage) -> None:
        """Queue a message. Never blocks; an agent that does not read is given up."""
        if not self._ended.done() and not self._outbox.put(encode_broker_message(message)):
            self.end(RegistrationError("the agent does not read", code="unresponsive"))

    def end(self, why: RegistrationError | None = None) -> None:
        """End the stream, telling the agent why."""
        if not self._ended.done():
            self._ended.set_result(why)

    async def flushed(self) -> None:
        """Wait until what was sent before the end has been handed to gRPC."""
        async with asyncio.timeout(STOP_GRACE):
            await self._outbox.flushed()

    async def wait_ended(self) -> RegistrationError | None:
        return await self._ended


class ControlServer:
    """Listens for agents. An async context manager; `port` is the bound one."""

    def __init__(
        self,
        handler: ControlHandler,
        hosts: Sequence[str],
        port: int,
        credentials: grpc.ServerCredentials | None,
        *,
        register_timeout: float = HANDSHAKE_TIMEOUT,
        limits: Limits | None = None,
    ) -> None:
        self._handler = handler
        self._hosts = hosts
        self._credentials = credentials
        self._register_timeout = register_timeout
        self._limits = limits or Limits()
        self._unregistered = 0
        self._tasks = TaskSet()
        self._streams: set[ControlStream] = set()
        self.port = port

    async def __aenter__(self) -> ControlServer:
        milliseconds = int(self._register_timeout * 1000)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._limits.message_size),
                *self._connection_limit(),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.so_reuseport", 0),
                *LEAN,
                # An agent opens one; a peer that opens many keeps what each costs.
                ("grpc.max_concurrent_streams", 4),
                ("grpc.server_handshake_timeout_ms", milliseconds),
                # One that has opened none by then does not come to register.
                ("grpc.max_connection_idle_ms", milliseconds),
            ]
        )
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            self._serve
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),)
        )
        self._bind(server)
        await server.start()
        self._server = server
        return self

    def _connection_limit(self) -> list[tuple[str, int]]:
        """gRPC counts connections alike, whether they have an agent or have said nothing."""
        limits = self._limits
        if not (limits.agents and limits.unauthenticated):
            return []
        most = limits.agents + limits.unauthenticated
        return [("grpc.max_allowed_incoming_connections", most)]

    async def __aexit__(self, *exc_info: object) -> None:
        for stream in list(self._streams):
            stream.end(RegistrationError("the broker is shutting down", code="closing"))
        await self._server.stop(STOP_GRACE)
        await self._tasks.cancel_all()

    def _bind(self, server: grpc.aio.Server) -> None:
        # gRPC does not say why it cannot listen somewhere. So sockets of ours find that out
        # first, and hold the port until gRPC has it too.
        held = bind(self._hosts, self.port, REMEDY)
        try:
            self.port = held[0].getsockname()[1]
            hosts = [
                socket.getnameinfo(sock.getsockname(), socket.NI_NUMERICHOST)[0] for sock in held
            ]
            for host in hosts:
                if host == "0.0.0.0" and "::" in hosts:  # noqa: S104
                    continue  # gRPC's [::] is both families'
                address = host_port(host, self.port)
                if self._credentials is None:
                    server.add_insecure_port(address)
                else:
                    server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise SettingsError(
                f"cannot listen for agents on port {self.port} of {', '.join(self._hosts)}; "
                f"{REMEDY}"
            ) from error
        finally:
            for sock in held:
                sock.close()

    async def _serve(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        stream = ControlStream(context, self._tasks)
        self._streams.add(stream)
        reader = self._tasks.spawn(self._read(stream, context), "control reader")
        try:
            why = await stream.wait_ended()
        finally:
            self._streams.discard(stream)
            stream.end()
            reader.cancel()
        with contextlib.suppress(TimeoutError):
            await stream.flushed()
        if why is not None:
            with contextlib.suppress(grpc.aio.InternalError):  # it has gone already
                await context.abort(_STATUS[why.code], str(why))

    async def _read(
        self, stream: ControlStream, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        session, reason, draining = None, "its control stream was lost", False
        try:
            session = await self._register(stream, context)
            while True:
                message = await self._next(context)
                if message is None:
                    if not draining:
                        await asyncio.sleep(CANCELLED_WITHIN)  # and is cancelled there
                    reason = "it closed its control stream"
                    break
                draining = draining or isinstance(message, control.Draining)
                self._handler.received(session, message)
            stream.end()
        except RegistrationError as error:
            self._handler.refused(stream.peer, stream.claimed, error)
            stream.end(error)
        except RemoteProtocolError as error:
            reason = f"protocol error: {error}"
            why = RegistrationError(str(error), code="invalid")
            if session is None:
                self._handler.refused(stream.peer, stream.claimed, why)
            stream.end(why)
        except grpc.RpcError as error:
            logger.debug("control stream of %s: %s", stream.peer.address, error)
            stream.end()
        except Exception:
            logger.exception("control stream of %s failed", stream.peer.address)
            stream.end(RegistrationError("the broker failed", code="closing"))
        finally:
            if session is not None:
                self._handler.left(session, reason)

    async def _register(
        self, stream: ControlStream, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        most = self._limits.unauthenticated
        if most and self._unregistered >= most:
            raise RegistrationError(f"{most} others are yet to register", code="unauthenticated")
        self._unregistered += 1
        try:
            async with asyncio.timeout(self._register_timeout):
                first = await self._next(context)
            if not isinstance(first, control.Register):
                raise RemoteProtocolError("the first message has to be a registration")
            stream.claimed = printable(f"{first.hostname}.{first.domain}", MAX_NAME_LENGTH)
            return await self._handler.register(stream, first)
        except TimeoutError as error:
            raise RegistrationError("no registration came in time", code="invalid") from error
        finally:
            self._unregistered -= 1

    async def _next(
        self, context: grpc.aio.ServicerContext[Any, Any]
    ) -> control.AgentMessage | None:
        """The next message that we know; None at the agent's end of the stream."""
        while True:
            data = await context.read()
            if data is grpc.aio.EOF:
                return None
            message = decode_agent_message(data)
            if message is not None:
                return message


def _address(peer: str) -> tuple[str, int]:
    """gRPC's notation (`ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`) as host and port."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else 0


def _peer(context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
    address = _address(context.peer())
    shown = context.auth_context().get("x509_pem_cert")
    if not shown:
        return Peer(address, None)
    pem = bytes(next(iter(shown)))
    try:
        return Peer(address, certificate_names_pem(pem), peer_certificate_pem(pem))
    except ValueError as error:
        logger.warning("an agent's certificate cannot be read: %s", error)
        return Peer(address, ())
