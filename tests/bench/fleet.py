"""A program: many agents in one process, that register and then do what they are told.

    fleet.py BROKER_PORT FIRST COUNT KEY CERT CA

Registers agents number FIRST to FIRST + COUNT and says `registered COUNT`. On a line
`park N` it has the first N of them park one connection each, and says `parked N`. It answers pings,
and ends with its standard input. They are scripted: they open nothing when asked to.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import grpc.aio

from client_agent.reverse import ReverseConnector
from whip_core import control
from whip_core.channel import CHANNEL_OPTIONS, channel_credentials
from whip_core.control_wire import METHOD_PATH, decode_broker_message, encode_agent_message
from whip_core.errors import AgentGone
from whip_core.framed import FramedConnection
from whip_core.frames import Side
from whip_core.preamble import Preamble
from whip_core.settings import TLSFiles
from whip_core.tls import client_context

AT_ONCE = 16
"""Handshakes under way: enough to keep the broker busy, no storm."""
ENDPOINT = "localhost"


class Agent:
    """One scripted agent. `serve` runs until its control stream ends."""

    def __init__(self, number: int, channel: grpc.aio.Channel) -> None:
        self.number = number
        self.registered: asyncio.Future[control.Registered] = (
            asyncio.get_running_loop().create_future()
        )
        self._call = channel.stream_stream(METHOD_PATH)()

    async def serve(self) -> None:
        hello = control.Register(
            f"agent{self.number}",
            "testdom",
            (80,),
            protocol_version=control.PROTOCOL_VERSION,
            instance_id=f"agent{self.number}",
        )
        await self._call.write(encode_agent_message(hello))
        while isinstance(data := await self._call.read(), bytes):
            match decode_broker_message(data):
                case control.Registered() as registered:
                    self.registered.set_result(registered)
                case control.Ping(sequence, sent):
                    pong = control.Pong(sequence, sent, time.time_ns())
                    await self._call.write(encode_agent_message(pong))
        raise SystemExit(f"agent {self.number}: {await self._call.details()}")

    async def park(self, connector: ReverseConnector) -> FramedConnection:
        registered = await self.registered
        host, port = registered.reverse_host, registered.reverse_port
        introduction = Preamble(registered.session_id, registered.secret)
        while True:
            try:
                return await connector.open(
                    FramedConnection(Side.ACCEPTOR), host, port, introduction
                )
            except AgentGone as error:
                print(f"agent {self.number}: {error}; keeps trying", file=sys.stderr, flush=True)


async def _few_at_once(jobs: Iterable[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(job: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async with slots:
            return await job()

    return await asyncio.gather(*map(one, jobs))


async def main(port: int, first: int, count: int, files: TLSFiles) -> None:
    credentials = channel_credentials(files)
    options = [
        *CHANNEL_OPTIONS,
        ("grpc.use_local_subchannel_pool", 1),  # a connection each, not one for all
        ("grpc.enable_http_proxy", 0),
        ("grpc.ssl_target_name_override", ENDPOINT),
    ]
    agents: list[Agent] = []
    serving: list[asyncio.Task[None]] = []

    async def register(number: int) -> None:
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
        agent = Agent(number, channel)
        agents.append(agent)
        task = asyncio.get_running_loop().create_task(agent.serve(), name=f"agent {number}")
        serving.append(task)
        await asyncio.wait([task, agent.registered], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()  # why it was not let in

    await _few_at_once(lambda n=number: register(n) for number in range(first, first + count))
    print("registered", len(agents), flush=True)
    connector = ReverseConnector(lambda: client_context(files), ENDPOINT, allow_plaintext=False)
    parked: list[FramedConnection] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        wanted = int(line.split()[1])
        more = agents[len(parked) : wanted]
        parked += await _few_at_once(lambda a=agent: a.park(connector) for agent in more)
        print("parked", sum(not connection.lost for connection in parked), flush=True)


if __name__ == "__main__":
    port, first, count = map(int, sys.argv[1:4])
    asyncio.run(main(port, first, count, TLSFiles.of(*sys.argv[4:7])))
