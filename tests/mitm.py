"""mitmproxy with the addon in this process, a stand-in for the broker, and curl."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from mitmproxy.options import Options
from mitmproxy.tools.dump import DumpMaster
from prometheus_client import CollectorRegistry

from programs import path_of
from tunnel import server_files
from whip_addon.lifecycle import WhipAddon
from whip_core.activity import Activity
from whip_core.agents import AgentView, RequestFinished
from whip_core.caller import NOBODY, Caller
from whip_core.errors import DialError, UnknownName
from whip_core.plugin_sources import PluginOptions
from whip_core.settings import BrokerSettings
from whip_core.stream_reader import BrokenLastReader
from whip_core.tasks import TaskSet

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Counts:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.finished: list[tuple[int, str, str]] = []


@dataclass
class FakeBroker:
    """Has names for services on this machine. A `DialError` instead of a port is raised.

    What has been dialled, for whom, and the streams that came of it, are there to look at.
    """

    services: dict[str, int | DialError] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    """Names that are whip's although nothing serves them."""
    broker_id: str = "fake"
    agents: list[AgentView] = field(default_factory=list)
    control_port: int = 50051
    reverse_port: int = 8000
    metrics: Counts = field(default_factory=Counts)
    dials: list[tuple[str, int, Caller]] = field(default_factory=list)
    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    settings: BrokerSettings = field(default_factory=BrokerSettings)
    activity: Activity = field(default_factory=Activity)
    plugin_options: PluginOptions = field(default_factory=PluginOptions)
    addons: Sequence[tuple[str, object]] = ()
    """What its plugins bring for mitmproxy, with the plugins' names."""
    waits: list[float] = field(default_factory=list)
    on_enter: Callable[[], None] = lambda: None
    goes_by_caller: bool = False
    is_open: bool = False
    may_close: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_close.set()

    def factory(self, settings: BrokerSettings, plugins: PluginOptions) -> FakeBroker:
        self.settings, self.plugin_options = settings, plugins
        return self

    async def __aenter__(self) -> FakeBroker:
        self.on_enter()
        self.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.may_close.wait()
        self.is_open = False

    def why_not_ready(self) -> str | None:
        return None if self.is_open else "closed"

    def running_bytes(self) -> dict[str, tuple[int, int]]:
        return {}

    def request_finished(self, request: RequestFinished) -> None:
        self.metrics.finished.append((request.status, request.protocol, request.error))

    def mitmproxy_addons(self) -> Sequence[tuple[str, object]]:
        return self.addons

    def begin_drain(self) -> None:
        pass

    def reopen_logs(self) -> None:
        pass

    async def drain(self, timeout: float) -> None:
        pass

    def kick(self, name: str) -> None:
        raise UnknownName(f"nobody is registered as {name}")

    def routes(self, host: str) -> bool:
        name = host.lower().removesuffix(".")
        return name in self.services or name in self.known

    def resolves(self, host: str, port: int, caller: Caller) -> bool:
        return False

    def destination(self, host: str, port: int, caller: Caller) -> None:
        """Every caller is brought to the same service."""

    def response_seen(self, agent: object, status: int) -> None:
        raise AssertionError("there are no agents here")

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        caller: Caller = NOBODY,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.dials.append((host, port, caller))
        self.waits.append(wait)
        service = self.services.get(host.lower().removesuffix("."))
        if service is None:
            raise UnknownName(f"nobody is registered as {host}")
        if isinstance(service, DialError):
            raise service
        loop = asyncio.get_running_loop()
        reader = BrokenLastReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", service)
        self.streams.append((reader, asyncio.StreamWriter(transport, protocol, reader, loop)))
        return self.streams[-1]

    def break_stream(self, error: Exception, index: int = -1) -> None:
        """Let the proxy's end of a stream break, as a reset or a cut does."""
        reader, _ = self.streams[index]
        reader.set_exception(error)


@functools.cache
def confdir() -> Path:
    """mitmproxy's own files (its CA takes a while to make), one folder for this process."""
    path = Path(tempfile.mkdtemp(prefix="whip-mitm-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


class _Started:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    def running(self) -> None:
        self.event.set()


@dataclass
class Proxy:
    """A mitmproxy that runs. `hooks` can be given hook functions, as in a user's script."""

    master: DumpMaster
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def proxy(
    broker: FakeBroker | None = None,
    *scripts: object,
    addon: WhipAddon | None = None,
    mode: Sequence[str] = ("regular",),
    **options: Any,
) -> AsyncIterator[Proxy]:
    """mitmdump with the addon and `scripts`, all of them where mitmproxy has its scripts.

    With neither `broker` nor `addon` it is without whip, which a script may bring.
    """
    master = DumpMaster(
        Options(confdir=str(confdir()), listen_host="127.0.0.1", listen_port=0, mode=list(mode)),
        with_termlog=False,
        with_dumper=False,
    )
    if broker is not None:
        addon = WhipAddon(broker.factory)
    started = _Started()
    place = master.addons.chain.index(master.addons.get("scriptloader")) + 1
    for script in (started, *reversed(scripts), *([addon] if addon is not None else [])):
        master.addons.chain.insert(place, master.addons.register(script))
    defaults = {
        "whip_external_tcp_address": "localhost",
        "whip_tls": False,
        "whip_metrics_listen": "",
        "whip_control_socket": "",
    }
    master.options.update_defer(**defaults | options)
    running = asyncio.get_running_loop().create_task(master.run())
    try:
        up = asyncio.get_running_loop().create_task(started.event.wait())
        await asyncio.wait([up, running], return_when=asyncio.FIRST_COMPLETED)
        assert up.done(), "mitmproxy did not start"
        [(_, port, *_)] = master.addons.get("proxyserver").listen_addrs()
        yield Proxy(master, port)
    finally:
        master.shutdown()
        await running
        # mitmproxy leaves that to the end of its process.
        servers = master.addons.get("proxyserver").servers
        await asyncio.gather(*(server.stop() for server in servers))


@asynccontextmanager
async def service(handler: Handler, *, ssl: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A TCP server on loopback; gives its port. The streams are closed behind the handler."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=ssl)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """The head of an HTTP/1 message."""
    return await reader.readuntil(b"\r\n\r\n")


def answering(body: bytes, *headers: str) -> Handler:
    """A service that answers every request on a connection with `body`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await read_head(reader)
            except asyncio.IncompleteReadError:
                return
            head = "\r\n".join(("HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers))
            writer.write(head.encode() + b"\r\n\r\n" + body)
            await writer.drain()

    return handle


Parts = Callable[[str], AsyncIterator[bytes]]


def answering_http2(parts: Parts) -> Handler:
    """A service that answers requests at the same time, each with the `parts` for its path.

    The head is sent with the first part.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        answers = TaskSet()
        try:
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        answers.spawn(_answer(connection, event, parts, writer), "answer")
                writer.write(connection.data_to_send())
        finally:
            answers.cancel()

    return handle


async def _answer(
    connection: h2.connection.H2Connection,
    request: h2.events.RequestReceived,
    parts: Parts,
    writer: asyncio.StreamWriter,
) -> None:
    stream, headers = request.stream_id, dict(request.headers)
    answered = False
    with contextlib.suppress(h2.exceptions.StreamClosedError):  # the client has given up
        async for part in parts(headers[b":path"].decode()):
            if not answered:
                connection.send_headers(stream, [(":status", "200")])
                answered = True
            connection.send_data(stream, part)
            writer.write(connection.data_to_send())
        connection.end_stream(stream)
        writer.write(connection.data_to_send())


@functools.cache
def web_context(*names: str, alpn: str = "http/1.1") -> ssl.SSLContext:
    """The TLS of a web server with these names that speaks that protocol."""
    files = server_files(*names)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols([alpn])
    return context


@dataclass(frozen=True)
class Finished:
    status: int
    output: str
    errors: str


async def curl(*arguments: str, feed: bytes | None = None) -> Finished:
    process = await asyncio.create_subprocess_exec(
        path_of("curl"),
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(feed or b"")
    assert process.returncode is not None
    return Finished(process.returncode, output.decode(), errors.decode())
