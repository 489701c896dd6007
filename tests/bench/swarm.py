"""A program: many agents in one process, each at a few brokers, that come back and take dials.

    swarm.py FIRST COUNT HELD KEY CERT CA PORT…

Agents number FIRST to FIRST + COUNT hold HELD of the brokers at PORT…, each others. A line on
standard input is answered with `live N`: how many registrations stand. A dialled stream says
"ok" and ends. It parks nothing of its own accord; what was dialled stays parked. It ends with
its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from typing import Any

import grpc
import grpc.aio

from client_agent.reverse import ReverseConnector
from whip_core import control
from whip_core.channel import CHANNEL_OPTIONS, channel_credentials
from whip_core.control_wire import METHOD_PATH, decode_broker_message, encode_agent_message
from whip_core.errors import WhipError
from whip_core.framed import FramedConnection
from whip_core.frames import OpenRequested, Side
from whip_core.preamble import Preamble
from whip_core.settings import TLSFiles
from whip_core.tasks import TaskSet
from whip_core.tls import client_context

AT_ONCE = 16
"""Registrations under way: enough to keep brokers busy, no storm."""
FIRST_RETRY, LAST_RETRY = 0.5, 5.0
"""Seconds, as the agent's own back-off has them at first."""
ENDPOINT = "localhost"


class Says(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.write(b"ok")
        transport.write_eof()

    def eof_received(self) -> bool:
        return True


class Swarm:
    def __init__(self, files: TLSFiles) -> None:
        self.live = 0
        self.tasks = TaskSet()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._credentials = channel_credentials(files)
        context = client_context(files)
        self._connector = ReverseConnector(lambda: context, ENDPOINT, allow_plaintext=False)
        self._options = [
            *CHANNEL_OPTIONS,
            ("grpc.use_local_subchannel_pool", 1),  # a connection each, not one for all
            ("grpc.enable_http_proxy", 0),
            ("grpc.ssl_target_name_override", ENDPOINT),
        ]

    async def hold(self, name: str, port: int) -> None:
        """Keep one agent registered at one broker."""
        delay = FIRST_RETRY
        while True:
            began = time.monotonic()
            with contextlib.suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
                await self._serve(name, port)
            if time.monotonic() - began > LAST_RETRY:
                delay = FIRST_RETRY
            await asyncio.sleep(random.uniform(delay / 2, delay))
            delay = min(delay * 2, LAST_RETRY)

    async def _serve(self, name: str, port: int) -> None:
        target = f"127.0.0.1:{port}"
        async with grpc.aio.secure_channel(
            target, self._credentials, options=self._options
        ) as channel:
            async with self._slots:
                call = channel.stream_stream(METHOD_PATH)()
                version = control.PROTOCOL_VERSION
                hello = control.Register(
                    name, "testdom", (80,), protocol_version=version, instance_id=name
                )
                await call.write(encode_agent_message(hello))
                first = await call.read()
            if not isinstance(first, bytes):
                return
            registered = decode_broker_message(first)
            assert isinstance(registered, control.Registered)
            self.live += 1
            try:
                while isinstance(data := await call.read(), bytes):
                    match decode_broker_message(data):
                        case control.Ping(sequence, sent):
                            pong = control.Pong(sequence, sent, time.time_ns())
                            await call.write(encode_agent_message(pong))
                        case control.Connect(dial, host, reverse_port, _):
                            session = (registered.session_id, registered.secret)
                            self._connect(host, reverse_port, Preamble(*session, dial))
                        case control.Visit() as visit if visit.connection_id:
                            session = (visit.session_id, visit.secret)
                            introduction = Preamble(*session, visit.connection_id)
                            self._connect(visit.reverse_host, visit.reverse_port, introduction)
            finally:
                self.live -= 1

    def _connect(self, host: str, port: int, introduction: Preamble) -> None:
        self.tasks.spawn(self._open(host, port, introduction), "connect")

    async def _open(self, host: str, port: int, introduction: Preamble) -> None:
        connection = FramedConnection(Side.ACCEPTOR, on_open=self._accept)
        try:
            await self._connector.open(connection, host, port, introduction)
        except WhipError as error:
            print(f"cannot connect: {error}", file=sys.stderr, flush=True)

    def _accept(self, connection: FramedConnection, _: OpenRequested) -> asyncio.Task[None]:
        async def accept() -> None:
            connection.accept(extra={}).attach(Says())

        return self.tasks.spawn(accept(), "accept")


async def main(first: int, count: int, held: int, files: TLSFiles, ports: list[int]) -> None:
    swarm = Swarm(files)
    for number in range(first, first + count):
        for shift in range(held):
            port = ports[(number + shift) % len(ports)]
            swarm.tasks.spawn(swarm.hold(f"agent{number}", port), f"agent {number}")
    while await asyncio.to_thread(sys.stdin.readline):
        print("live", swarm.live, flush=True)
    await swarm.tasks.cancel_all()


if __name__ == "__main__":
    first, count, held = map(int, sys.argv[1:4])
    asyncio.run(main(first, count, held, TLSFiles.of(*sys.argv[4:7]), list(map(int, sys.argv[7:]))))
