"""A scripted agent: it registers, and then does what the test says.

    hello = control.Register("instance1", "testdom", (80,), protocol_version=1)
    async with ScriptedAgent(("127.0.0.1", broker.control_port), hello) as agent:
        await agent.expect(control.Registered)
        request = await agent.expect(control.Connect)
        reverse = await agent.connect_framed(request)
        await reverse.asked()
        reader, writer = reverse.accept()

It is an *old* agent if its registration announces no protocol version. Registration,
messages and preamble may each be given as bytes, such as recorded ones.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

import grpc
import grpc.aio

from whip_core import control, preamble
from whip_core.channel import CHANNEL_OPTIONS, channel_credentials
from whip_core.control_wire import METHOD_PATH, decode_broker_message, encode_agent_message
from whip_core.framed import FramedConnection
from whip_core.frames import FailureCode, OpenRequested, Side
from whip_core.names import host_port
from whip_core.preamble import OldPreamble, Preamble
from whip_core.settings import TLSFiles
from whip_core.tasks import TaskSet
from whip_core.tls import client_context

MessageT = TypeVar("MessageT", bound=control.BrokerMessage)


class ControlStreamEnded(AssertionError):
    """The broker has ended the control stream while the test expected something else.

    `status` is gRPC's name for the reason, `details` the text with it.
    """

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"the control stream has ended: {status}: {details}")
        self.status = status
        self.details = details


class ScriptedAgent:
    """An async context manager; inside it the registration has been sent.

    Entering waits for nothing and never fails: what the broker makes of the registration
    shows in `expect` and `ended`. Leaving drops the control stream and every reverse
    connection. `tls_name` is the name that the broker's certificate has to be for.
    """

    def __init__(
        self,
        address: tuple[str, int],
        registration: control.Register | bytes,
        *,
        tls: TLSFiles | None = None,
        tls_name: str = "localhost",
        answers_pings: bool = True,
    ) -> None:
        self.registered: control.Registered | None = None
        """The broker's answer, once it has come; an old agent gets none."""
        self._address = address
        self._registration = registration
        self._tls = tls
        self._tls_name = tls_name
        self._answers_pings = answers_pings
        self._received: list[control.BrokerMessage] = []
        self._news = asyncio.Event()
        self._end: ControlStreamEnded | None = None
        self._tasks = TaskSet()
        self._writers: list[asyncio.StreamWriter] = []
        self._framed: list[FramedReverse] = []

    def __repr__(self) -> str:
        state = f"ended {self._end.status}" if self._end else "open"
        return f"<ScriptedAgent {state} received={self._received}>"

    async def __aenter__(self) -> ScriptedAgent:
        host, port = self._address
        target = host_port(host, port)
        options: list[tuple[str, Any]] = [
            *CHANNEL_OPTIONS,
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ]
        if self._tls is None:
            self._channel = grpc.aio.insecure_channel(target, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", self._tls_name))
            credentials = channel_credentials(self._tls)
            self._channel = grpc.aio.secure_channel(target, credentials, options=options)
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            METHOD_PATH
        )
        self._call = method()
        self._tasks.spawn(self._pump(), "scripted agent")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.vanish()
        for writer in self._writers:
            writer.close()
        for reverse in self._framed:
            reverse.drop()
        await self._tasks.cancel_all()

    async def vanish(self) -> None:
        """Break the control stream off without a word; reverse connections stay."""
        self._call.cancel()
        await self._channel.close()

    async def leave(self) -> None:
        """End our direction of the control stream, as an agent does that has drained."""
        await self._call.done_writing()

    # The control stream

    async def _pump(self) -> None:
        try:
            await self.send(self._registration)
            while isinstance(data := await self._call.read(), bytes):
                await self._take(data)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the call's status says more
        except asyncio.CancelledError:
            if not self._call.cancelled():
                raise
        code, details = await self._call.code(), await self._call.details()
        self._end = ControlStreamEnded(code.name, details or "")
        self._tell()

    async def _take(self, data: bytes) -> None:
        message = decode_broker_message(data)
        if isinstance(message, control.Registered):
            self.registered = message
        if isinstance(message, control.Ping) and self._answers_pings:
            await self.pong(message)
        if message is not None:
            self._received.append(message)
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def send(self, message: control.AgentMessage | bytes) -> None:
        """Send a message, or bytes in the place of one."""
        data = message if isinstance(message, bytes) else encode_agent_message(message)
        await self._call.write(data)

    async def pong(self, ping: control.Ping) -> None:
        await self.send(control.Pong(ping.sequence, ping.ping_timestamp, time.time_ns()))

    async def expect(self, kind: type[MessageT]) -> MessageT:
        """The next message of this kind, whatever else came or comes before it.

        Each message is given once. Raises `ControlStreamEnded` if none can come any more.
        """
        while True:
            for index, message in enumerate(self._received):
                if isinstance(message, kind):
                    del self._received[index]
                    return message
            if self._end is not None:
                raise self._end
            await self._news.wait()

    async def ended(self) -> ControlStreamEnded:
        """Wait for the end of the control stream; says how it ended."""
        while self._end is None:
            await self._news.wait()
        return self._end

    # Reverse connections

    def introduction(self, request: control.Connect | None = None) -> Preamble | OldPreamble:
        """The preamble that answers `request` (None: a connection to be parked)."""
        connection_id = request.connection_id if request is not None else ""
        if self.registered is None:
            return OldPreamble(connection_id)
        return Preamble(self.registered.session_id, self.registered.secret, connection_id)

    async def connect_back(
        self,
        request: control.Connect,
        *,
        introduce: Preamble | OldPreamble | bytes | None = None,
        then: bytes = b"",
        tls: TLSFiles | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a reverse connection, bare: what comes after the preamble is the test's.

        `introduce` is what to say (None: the `introduction`), `then` goes out right behind
        it in the same write, `tls` are other files to prove ourselves with than the agent's.
        """
        files = tls or self._tls
        reader, writer = await asyncio.open_connection(
            request.host, request.port, ssl=client_context(files) if files else None
        )
        self._writers.append(writer)
        words = self.introduction(request) if introduce is None else introduce
        writer.write((words if isinstance(words, bytes) else preamble.encode(words)) + then)
        return reader, writer

    async def connect_framed(self, request: control.Connect | None = None) -> FramedReverse:
        """Open a reverse connection that speaks frames; without a request it is parked."""
        assert self.registered is not None, "expect(control.Registered) first"
        if request is None:
            host, port = self.registered.reverse_host, self.registered.reverse_port
        else:
            host, port = request.host, request.port
        reverse = FramedReverse(self._tasks)
        self._framed.append(reverse)
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: reverse.connection,
            host,
            port,
            ssl=client_context(self._tls) if self._tls else None,
        )
        transport.write(preamble.encode(self.introduction(request)))
        return reverse


class FramedReverse:
    """The agent's end of a reverse connection that speaks frames."""

    def __init__(self, tasks: TaskSet) -> None:
        self._tasks = tasks
        self._requests: asyncio.Queue[OpenRequested] = asyncio.Queue()
        self._lost = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self.connection = FramedConnection(
            Side.ACCEPTOR, on_open=self._on_open, on_lost=lambda _: self._lost.set()
        )

    def _on_open(self, connection: FramedConnection, request: OpenRequested) -> asyncio.Task[None]:
        return self._tasks.spawn(self._requests.put(request), "open asked for")

    async def asked(self) -> OpenRequested:
        """Wait until the broker asks for a stream; answer with `accept` or `refuse`."""
        return await self._requests.get()

    def accept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the stream that was asked for."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        stream = self.connection.accept(extra={})
        stream.attach(protocol)
        writer = asyncio.StreamWriter(stream, protocol, reader, asyncio.get_running_loop())
        self._writers.append(writer)
        return reader, writer

    def refuse(self, why: str, code: FailureCode = FailureCode.SERVICE_REFUSED) -> None:
        """Refuse it; the connection is parked again."""
        self.connection.refuse(code, why)

    def drop(self) -> None:
        """Close the connection; a stream that is still open on it is broken off."""
        for writer in self._writers:
            writer.transport.abort()
        self.connection.close()

    async def lost(self) -> None:
        """Wait until the connection is gone."""
        await self._lost.wait()
