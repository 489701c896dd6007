"""A broker, agents and services in one process, and how a test waits for what they do."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from client_agent import Agent, AgentSettings, Endpoint, parse_exposure
from client_agent.discovery import Resolvers
from whip_core import Broker, BrokerSettings, TLSFiles, control, hookimpl
from whip_core.agents import AgentView, DialFinished, Refusal, StreamClosed
from whip_core.names import AgentName
from whip_core.testing import Authority
from whip_core.testing.agent import ScriptedAgent

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PACKAGES = ("whip_core", "client_agent", "whip_addon")
PATIENCE = 60.0
"""Seconds after which a test has failed that waits for something: far more than any needs."""
TURNS_AT_ONCE = 50
"""Of the event loop, before `until` leaves pauses: enough for what needs no other process."""
LAST_MOMENT = 5.0
"""Seconds for tasks that are ending anyway."""


class _Errors(logging.Handler):
    """Keeps what is logged as an error: a traceback among it is never part of the plan."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        # gRPC has one poller for all event loops of a process: an event for a loop that is
        # closed, here that of an earlier test, is an error of the one that runs.
        if "PollerCompletionQueue._handle_events" not in message:
            self.messages.append(message)


def run(
    main: Coroutine[Any, Any, T], *, logs_errors: bool = False, patience: float = PATIENCE
) -> T:
    """Run a test's coroutine: it ends in time, logs no error and leaves no task behind."""
    errors = _Errors()

    async def watched() -> T:
        async with asyncio.timeout(patience):
            result = await main
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            # Those of gRPC that are ending need another moment.
            _, left = await asyncio.wait(left, timeout=LAST_MOMENT)
        assert not left, f"tasks are left: {[task.get_name() for task in left]}"
        return result

    logging.getLogger().addHandler(errors)
    try:
        return asyncio.run(watched())
    finally:
        logging.getLogger().removeHandler(errors)
        assert logs_errors or not errors.messages, "\n".join(errors.messages)


async def until(condition: Callable[[], object], pause: float = 0.005) -> None:
    """Wait for what has no event of its own, here or in another process.

    What this event loop is about to do is seen at once. Whatever takes longer may need the
    processor that asking would keep busy, so from then on there are `pause` seconds between.
    """
    turns = 0
    while not condition():
        turns += 1
        await asyncio.sleep(0 if turns <= TURNS_AT_ONCE else pause)


class Log(logging.Handler):
    """What has been logged; a test waits for a line to come.

    A context manager. It sees everything from the level of information on.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def __enter__(self) -> Log:
        self._levels = {name: logging.getLogger(name).level for name in PACKAGES}
        for name in PACKAGES:
            logging.getLogger(name).addHandler(self)
            logging.getLogger(name).setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).removeHandler(self)
            logging.getLogger(name).setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._news.set()
        self._news = asyncio.Event()

    def having(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    async def until(self, text: str, count: int = 1) -> str:
        """Wait for `count` lines with that text; gives the last of them."""
        while len(self.having(text)) < count:
            await self._news.wait()
        return self.having(text)[-1]


# Certificates


@functools.cache
def authority() -> Authority:
    """The one CA of this process, in a folder that goes with it."""
    folder = tempfile.mkdtemp(prefix="whip-ca-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Authority(folder)


@functools.cache
def server_files(*names: str, relay: bool = False) -> TLSFiles:
    """A broker's, for these names and no address."""
    return authority().server_files(names, (), relay=relay)


@functools.cache
def client_files(name: str = "*.testdom") -> TLSFiles:
    """An agent's."""
    return authority().client_files(name)


# Broker


def broker_settings(**changes: Any) -> BrokerSettings:
    """Free ports of 127.0.0.1, without TLS; `tls=True` for a certificate for localhost."""
    if changes.get("tls") is True:
        changes["tls"] = server_files("localhost")
    defaults: dict[str, Any] = {
        "external_host": "localhost",
        "listen_host": "127.0.0.1",
        "tcp_listen_port": 0,
        "grpc_listen_port": 0,
    }
    return BrokerSettings(**defaults | changes)


class Watch:
    """A plugin that keeps what it is told, for a test to wait for."""

    def __init__(self) -> None:
        self.joined: list[AgentView] = []
        self.left: list[tuple[AgentView, str]] = []
        self.round_trips: list[float] = []
        self.dials: list[DialFinished] = []
        self.opened: list[DialFinished] = []
        self.closed: list[StreamClosed] = []
        self.refused: list[Refusal] = []
        self.taken_over: list[tuple[AgentView, AgentView]] = []
        self.responses: list[tuple[str, int]] = []
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what has been told makes `condition` true."""
        while not condition():
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @hookimpl
    def whip_agent_joined(self, agent: AgentView) -> None:
        self.joined.append(agent)
        self._tell()

    @hookimpl
    def whip_agent_left(self, agent: AgentView, reason: str) -> None:
        self.left.append((agent, reason))
        self._tell()

    @hookimpl
    def whip_refused(self, refusal: Refusal) -> None:
        self.refused.append(refusal)
        self._tell()

    @hookimpl
    def whip_name_taken_over(self, agent: AgentView, by: AgentView) -> None:
        self.taken_over.append((agent, by))
        self._tell()

    @hookimpl
    def whip_round_trip(self, seconds: float) -> None:
        self.round_trips.append(seconds)
        self._tell()

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        self.dials.append(dial)
        self._tell()

    @hookimpl
    def whip_response_seen(self, agent: AgentView, status: int) -> None:
        self.responses.append((agent.name.hostname, status))
        self._tell()

    @hookimpl
    def whip_stream_opened(self, dial: DialFinished) -> None:
        self.opened.append(dial)
        self._tell()

    @hookimpl
    def whip_stream_closed(self, stream: StreamClosed) -> None:
        self.closed.append(stream)
        self._tell()


# Agents


def registration(hostname: str = "instance1", *ports: int, **changes: Any) -> control.Register:
    """What an agent of ours says of itself; port 80 unless others are given."""
    told: dict[str, Any] = {"domain": "testdom", "protocol_version": 1, "instance_id": hostname}
    return control.Register(hostname, ports=ports or (80,), **told | changes)


def scripted(
    broker: Broker, message: control.Register | bytes | None = None, **options: Any
) -> ScriptedAgent:
    """A scripted agent for that broker; `registration()` unless it is to say something else."""
    return ScriptedAgent(
        ("127.0.0.1", broker.control_port),
        registration() if message is None else message,
        **options,
    )


@asynccontextmanager
async def asked(
    *, tls: bool = False
) -> AsyncIterator[tuple[Broker, ScriptedAgent, control.Connect, asyncio.Task[Streams]]]:
    """A scripted agent that a dial has just asked for a connection; gives that dial's task too."""
    files = client_files("instance1.testdom") if tls else None
    async with (
        Broker(broker_settings(tls=tls or None)) as broker,
        scripted(broker, tls=files) as agent,
    ):
        await agent.expect(control.Registered)
        dial = asyncio.get_running_loop().create_task(
            broker.open_connection("instance1.testdom", 80)
        )
        yield broker, agent, await agent.expect(control.Connect), dial


def agent_settings(
    *endpoints: str | int, ports: str, hostname: str = "instance1", **changes: Any
) -> AgentSettings:
    """An endpoint that is only a port is on localhost."""
    texts = (f"localhost:{text}" if isinstance(text, int) else text for text in endpoints)
    return AgentSettings(
        name=AgentName.parse(hostname, changes.pop("domain", "testdom")),
        exposure=parse_exposure([ports]),
        endpoints=tuple(map(Endpoint.parse, texts)),
        **changes,
    )


@asynccontextmanager
async def running(
    settings: AgentSettings, resolvers: Resolvers | None = None, plugins: Sequence[object] = ()
) -> AsyncIterator[Agent]:
    """A real agent, running; behind the block it is cut off."""
    agent = Agent(settings, resolvers=resolvers, plugins=plugins)
    task = asyncio.get_running_loop().create_task(agent.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.wait([task])


# Services


@asynccontextmanager
async def service(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A TCP server; gives its port. Connections are closed behind the handler."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except OSError:
            pass  # the other end broke it, which is the other end's business
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        writers.append(writer)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, and ends when that has ended."""
    while data := await reader.read(64 * 1024):
        writer.write(data)
        await writer.drain()


def saying(text: bytes) -> Handler:
    """A service that speaks first and hangs up."""

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()

    return handle


async def exchange(streams: Streams, data: bytes) -> bytes:
    """Send `data` and an end, give back all that comes, and close."""
    reader, writer = streams
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
