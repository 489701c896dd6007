"""A tunnel of real processes under a steady load that is checked octet by octet.

A test breaks something, waits until every name answers again, and then finds out whether
all answers were right, whatever failed did so clearly, and everything was given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bad_link import BadLink
from bench.usage import descriptors, resident_kb
from processes import Process, free_ports, started
from tunnel import client_files, server_files, service
from whip_core.settings import TLSFiles

WHIP = Path(__file__).with_name("hurried_whip.py")
BROKER = "broker.test"
"""The broker's name in a DNS of the test's own."""
SIZES = (100, 40_000, 1_000_000)
"""Octets of an answer: less than a frame, less than a buffer, more than all buffers."""
WORKERS = 6
PACE = 0.05
"""Seconds from one exchange of a worker to the next: steady, not what the machine can do."""
PATIENCE = 40.0
"""Seconds that one exchange may take: longer than any dial, and than a dead path is believed."""
AGAIN = 10
"""Right answers from each name after which a fault is taken to be over."""
SETTLES_WITHIN = 30.0
"""Seconds for everything to be given back when the load is over."""
SPARE_TASKS = 1
"""gRPC forgets one of a call that ends while its process stands still ("Internal error from
Core"); ours are never among them."""
SPARE_DESCRIPTORS = 3
"""What gRPC opens for itself now and then, and keeps."""
GROWTH_MB = 12.0
"""What memory may differ: pages that something small keeps, and far below a leak per request."""


class Wrong(Exception):
    """Octets that nobody sent, an end that was none, or an exchange that hangs."""


def answer(token: str, size: int) -> bytes:
    """What the service sends for this request, and for no other."""
    block = hashlib.sha256(token.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The service: lines of a token and a size, each answered."""
    while line := await reader.readline():
        token, size = line.split()
        writer.write(answer(token.decode(), int(size)))
        await writer.drain()


class Load:
    """Workers that ask each of `ports` in turn, and what came of it."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = ports
        self._workers = WORKERS
        self._pause = PACE
        self._sizes = SIZES
        self._tokens = itertools.count()
        self._news = asyncio.Event()
        self._stopped = False
        self.right: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []

    def set(self, rate: float, workers: int, sizes: tuple[int, ...]) -> None:
        """At most `rate` streams a second by so many workers, instead of the usual."""
        self._workers, self._pause, self._sizes = workers, workers / rate, sizes

    def __str__(self) -> str:
        return f"right {dict(self.right)}, failed {dict(self.failed)}, wrong {self.wrong}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load while the block runs; afterwards nothing was wrong."""
        self._stopped = False
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(number), name=f"load {number}")
            try:
                yield
            finally:
                self._stopped = True
        assert not self.wrong, str(self)

    async def answers(self, times: int = AGAIN) -> None:
        """Wait until every name has given so many more right answers."""
        enough = {name: self.right[name] + times for name in self._ports}
        while any(self.right[name] < count for name, count in enough.items()):
            await self._news.wait()

    async def fails(self) -> None:
        """Wait for one more exchange that fails."""
        before = self.failed.total()
        while self.failed.total() == before:
            await self._news.wait()

    async def _work(self, number: int) -> None:
        names = itertools.islice(itertools.cycle(self._ports), number, None)
        sizes = itertools.islice(itertools.cycle(self._sizes), number, None)
        loop = asyncio.get_running_loop()
        while not self._stopped:
            name, next_at = next(names), loop.time() + self._pause
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._exchange(self._ports[name], [next(sizes), next(sizes)])
                self.right[name] += 1
            except TimeoutError as error:
                # The kernel's own is a failure like others; ours means that it hangs.
                if error.errno is None:
                    self.wrong.append(f"{name}: no end within {PATIENCE:g} s")
                self.failed["TimeoutError"] += 1
            except OSError as error:
                self.failed[type(error).__name__] += 1
            except Wrong as error:
                self.wrong.append(f"{name}: {error}")
            self._news.set()
            self._news = asyncio.Event()
            await asyncio.sleep(next_at - loop.time())

    async def _exchange(self, port: int, sizes: list[int]) -> None:
        """Some requests on one connection, and its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for size in sizes:
                token = f"{next(self._tokens):016x}"
                writer.write(f"{token} {size}\n".encode())
                await self._expect(reader, token, size)
            writer.write_eof()
            if await reader.read(1):
                raise Wrong("octets behind the last answer")
        finally:
            writer.transport.abort()

    async def _expect(self, reader: asyncio.StreamReader, token: str, size: int) -> None:
        try:
            got = await reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Wrong(f"{len(error.partial)} of {size} octets, then a clean end") from None
            raise ConnectionResetError("closed without an answer") from None
        if got != answer(token, size):
            raise Wrong(f"an answer of {size} octets that is not the one to {token}")


@dataclass(frozen=True)
class Use:
    """What one process holds."""

    tasks: int
    descriptors: int
    megabytes: float

    def more_than(self, before: Use) -> str:
        """What is held beyond `before`; empty if that is nothing."""
        return ", ".join(
            f"{after:.0f} {what}, {earlier:.0f} before"
            for what, after, earlier, spare in (
                ("tasks", self.tasks, before.tasks, SPARE_TASKS),
                ("descriptors", self.descriptors, before.descriptors, SPARE_DESCRIPTORS),
                ("MB", self.megabytes, before.megabytes, GROWTH_MB),
            )
            if after > earlier + spare
        )


async def use_of(process: Process) -> Use:
    told = sum(line.startswith("tasks ") for line in process.lines)
    process.signal(signal.SIGUSR2)
    await process.says_often("tasks ", told + 1)
    last = next(line for line in reversed(process.lines) if line.startswith("tasks "))
    tasks = int(last.split(" | ")[1])
    return Use(tasks, descriptors(process.pid), resident_kb(process.pid) / 1024)


class Tunnel:
    """`processes` by name: `broker`, and each agent under its hostname.

    All that agents and broker say to each other goes over two links.
    """

    def __init__(
        self,
        agents: tuple[str, ...],
        service_port: int,
        control: BadLink,
        reverse: BadLink,
        broker_options: tuple[str, ...],
        env: Mapping[str, str],
        broker_name: str,
    ) -> None:
        *ports, control.target_port, reverse.target_port = free_ports(len(agents) + 2)
        self.ports = dict(zip(agents, ports, strict=True))
        self.load = Load(self.ports)
        self.links = (control, reverse)
        self.processes: dict[str, Process] = {}
        self._service_port = service_port
        self._broker_options = broker_options
        self._env = env
        self._broker_name = broker_name
        self._before: dict[str, Use] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Tunnel:
        await self._stack.__aenter__()
        try:
            for name in ("broker", *self.ports):
                await self.start(name)
            async with self.load.running():
                await self.load.answers()
            self.load.failed.clear()  # before the agents had registered
            self._before = await self.census()
        except BaseException:
            await self._stack.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for process in self.processes.values():
            process.signal(signal.SIGCONT)
        await self._stack.__aexit__(*exc_info)  # type: ignore[arg-type]

    async def start(self, name: str) -> None:
        """Start a process, for the first time or again."""
        arguments = self._broker() if name == "broker" else self._agent(name)
        self.processes[name] = await self._stack.enter_async_context(
            started(sys.executable, WHIP, *arguments, env=self._env)
        )
        await self.processes[name].says("forwarding" if name == "broker" else "joining the broker")

    async def kill(self, name: str) -> None:
        self.processes[name].signal(signal.SIGKILL)
        await self.processes[name].ended()

    async def census(self) -> dict[str, Use]:
        return {name: await use_of(process) for name, process in self.processes.items()}

    async def as_before(self) -> None:
        """Wait until every process holds what it held before the fault; it has to be soon."""
        left: dict[str, str] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLES_WITHIN):
                while True:
                    now = await self.census()
                    left = {
                        name: more
                        for name, use in now.items()
                        if (more := use.more_than(self._before[name]))
                    }
                    if not left:
                        return
                    await asyncio.sleep(0.5)
        raise AssertionError(f"not given back: {left}")

    @asynccontextmanager
    async def broken(self) -> AsyncIterator[None]:
        """The block breaks and repairs something under load; it has to leave no trace."""
        async with self.load.running():
            await self.load.answers(1)
            yield
            await self.load.answers()
        print(self.load)
        await self.as_before()

    def _broker(self) -> tuple[str, ...]:
        control, reverse = self.links
        return (
            "forward",
            *(f"{port}:{name}.testdom:80" for name, port in self.ports.items()),
            *("--whip-external-tcp-address=localhost", "--whip-listen-host=127.0.0.1"),
            f"--whip-external-tcp-port={reverse.port}",
            f"--whip-tcp-listen-port={reverse.target_port}",
            f"--whip-grpc-listen-port={control.target_port}",
            *tls_options(server_files("localhost", BROKER)),
            *("--metrics-listen=", "--control-socket="),
            *self._broker_options,
        )

    def _agent(self, name: str) -> tuple[str, ...]:
        return (
            *("client", f"--hostname={name}", "--domain=testdom"),
            f"--ports=80={self._service_port}",
            *tls_options(client_files()),
            *("--metrics-listen=", f"{self._broker_name}:{self.links[0].port}"),
        )


def tls_options(files: TLSFiles) -> tuple[str, ...]:
    return (
        f"--tls-key-path={files.key}",
        f"--tls-cert-path={files.cert}",
        f"--tls-ca-cert-path={files.ca}",
    )


@asynccontextmanager
async def tunnel(
    *broker_options: str,
    agents: tuple[str, ...] = ("one", "two"),
    env: Mapping[str, str] = {},
    broker_name: str = "localhost",
) -> AsyncIterator[Tunnel]:
    """A tunnel whose names answer, and whose processes' use is known.

    `broker_name` is what the agents know the broker by: it may also be `BROKER`.
    """
    async with (
        service(serve) as port,
        BadLink() as control,
        BadLink() as reverse,
        Tunnel(agents, port, control, reverse, broker_options, env, broker_name) as there,
    ):
        yield there


@contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """The process cannot open any while the block runs; those that it has stay."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
