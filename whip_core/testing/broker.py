"""A scripted broker: it takes agents and reverse connections, and does what the test says.

    async with ScriptedBroker() as broker:
        agent = await broker.agent()          # an agent at `broker.control_port`
        await agent.receive()                 # its registration, as bytes
        await agent.send(control.Connect("id", "127.0.0.1", broker.reverse_port, 80))
        reader, writer = await broker.reverse_connection()
        assert await read_old_preamble(reader) == "id"

It is an *old* broker as long as the test sends no `control.Registered`. Messages may be
given as bytes, such as recorded ones.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import grpc.aio

from whip_core import control
from whip_core.control_wire import METHOD, SERVICE, encode_broker_message
from whip_core.framed import FramedConnection
from whip_core.frames import Side
from whip_core.preamble import Preamble, PreambleReader
from whip_core.settings import TLSFiles
from whip_core.tls import server_context

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ScriptedBroker:
    """An async context manager, listening on free ports of 127.0.0.1 while it is open.

    Leaving ends all control streams and closes all reverse connections.
    """

    def __init__(self, *, tls: TLSFiles | None = None) -> None:
        self._tls = tls
        self._agents: asyncio.Queue[ScriptedControlStream] = asyncio.Queue()
        self._arrived: asyncio.Queue[Streams] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._streams: list[ScriptedControlStream] = []
        self.control_port = 0
        """Where agents register."""
        self.reverse_port = 0
        """Where reverse connections are taken; what a `control.Connect` should say."""

    async def __aenter__(self) -> ScriptedBroker:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            self._serve
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),)
        )
        if self._tls is None:
            self.control_port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = _grpc_credentials(self._tls)
            self.control_port = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()
        self._listener = await asyncio.start_server(
            self._arrive, "127.0.0.1", 0, ssl=server_context(self._tls) if self._tls else None
        )
        self.reverse_port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for stream in self._streams:
            stream.end()
        await self._server.stop(grace=1)
        self._listener.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        stream = ScriptedControlStream(context)
        self._streams.append(stream)
        self._agents.put_nowait(stream)
        await stream.wait_ended()

    def _arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._arrived.put_nowait((reader, writer))

    async def agent(self) -> ScriptedControlStream:
        """Wait for the next agent that opens a control stream."""
        return await self._agents.get()

    async def reverse_connection(self) -> Streams:
        """Wait for the next reverse connection; nothing has been read from it."""
        return await self._arrived.get()

    async def framed_connection(self) -> tuple[Preamble, FramedConnection]:
        """Wait for the next one, of an agent of ours, and be the opener of streams on it."""
        reader, writer = await self.reverse_connection()
        parser, found = PreambleReader(), None
        while found is None:
            found = parser.feed(await reader.readexactly(1))
        assert isinstance(found, Preamble)
        connection = FramedConnection(Side.OPENER)
        writer.transport.set_protocol(connection)
        connection.connection_made(writer.transport)
        return found, connection


class ScriptedControlStream:
    """The broker's end of one agent's control stream."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self._ended = asyncio.Event()

    async def receive(self) -> bytes | None:
        """The next message, as it was on the wire; None at the agent's end of the stream."""
        data = await self._context.read()
        return data if isinstance(data, bytes) else None

    async def send(self, message: control.BrokerMessage | bytes) -> None:
        """Send a message, or bytes in the place of one."""
        data = message if isinstance(message, bytes) else encode_broker_message(message)
        await self._context.write(data)

    def end(self) -> None:
        """End the control stream."""
        self._ended.set()

    async def wait_ended(self) -> None:
        await self._ended.wait()


async def read_old_preamble(reader: asyncio.StreamReader) -> str:
    """Read an old agent's preamble, exactly to its closing brace; the connection's id."""
    connection_id = json.loads(await reader.readuntil(b"}"))["connectionID"]
    assert isinstance(connection_id, str)
    return connection_id


def _grpc_credentials(files: TLSFiles) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.cert.read_bytes())],
        root_certificates=files.ca.read_bytes(),
        require_client_auth=True,
    )
