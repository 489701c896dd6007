"""The agent's end of a control stream: one gRPC call to one broker address."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from client_agent.endpoints import Address
from client_agent.outbox import Outbox
from whip_core import control
from whip_core.channel import CHANNEL_OPTIONS
from whip_core.control_wire import METHOD_PATH, decode_broker_message, encode_agent_message
from whip_core.tasks import TaskSet


class ControlClosed(Exception):
    """The control stream has ended; `status` is gRPC's name for why."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(details or status)
        self.status = status


class ControlClient:
    """An async context manager around one call. `tls_name` is what the broker must prove.

    `target`, in gRPC's notation, is connected to instead of the address.
    """

    def __init__(
        self,
        address: Address,
        tls_name: str,
        credentials: grpc.ChannelCredentials | None,
        *,
        target: str | None = None,
    ) -> None:
        self._address = address
        self._tls_name = tls_name
        self._target = target
        self._credentials = credentials
        self._tasks = TaskSet()
        self._given_up = False

    async def __aenter__(self) -> ControlClient:
        family = "ipv6" if ":" in self._address.ip else "ipv4"
        target = self._target or f"{family}:{self._address}"
        options: list[tuple[str, Any]] = [
            *CHANNEL_OPTIONS,
            ("grpc.enable_http_proxy", 0),
            # Each attempt is a connection of its own: our back-off is the only one.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.default_authority", self._tls_name),
        ]
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", self._tls_name))
            self._channel = grpc.aio.secure_channel(target, self._credentials, options=options)
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            METHOD_PATH
        )
        self._call = method()
        self._outbox = Outbox(self._call.write, self._tasks)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._call.cancel()
        await self._tasks.cancel_all()
        await self._channel.close()

    def send(self, message: control.AgentMessage) -> None:
        """Queue a message; one that finds too many waiting breaks the stream off."""
        if not self._outbox.put(encode_agent_message(message)):
            self._given_up = True
            self._call.cancel()

    async def receive(self) -> control.BrokerMessage:
        """The next message that we know. Raises `ControlClosed` at the end of the stream."""
        while True:
            try:
                data = await self._call.read()
            except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.BaseError):
                data = grpc.aio.EOF
            except asyncio.CancelledError:
                if not self._given_up:
                    raise
                raise ControlClosed("CANCELLED", "it does not read what we send") from None
            if not isinstance(data, bytes):
                code = await self._call.code()
                raise ControlClosed(code.name, await self._call.details() or "")
            message = decode_broker_message(data)
            if message is not None:
                return message

    async def close(self) -> None:
        """End our direction after what is queued: the broker sees a clean end."""
        await self._outbox.flushed()
        await self._call.done_writing()
