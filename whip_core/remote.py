"""A broker in another process, used through its dial socket: the face of an embedded one."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from pathlib import Path
from types import TracebackType

from whip_core.activity import Activity
from whip_core.agents import AgentView, RequestFinished
from whip_core.caller import Caller
from whip_core.credentials import Credentials
from whip_core.dial_address import DialAddress
from whip_core.dial_client import DialClient
from whip_core.dial_wire import Ask, decode_agent, decode_news
from whip_core.dials import Dials
from whip_core.errors import (
    BrokerClosed,
    DialError,
    RemoteProtocolError,
    SettingsError,
    UnknownName,
)
from whip_core.metrics import BrokerMetrics
from whip_core.names import Target, host_port, is_within, normalize
from whip_core.remote_dial import RemoteDial
from whip_core.settings import RemoteSettings, Role, TLSFiles
from whip_core.stream import Stream
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds between two attempts to hear the news: a broker that restarts is soon back, and
one that stays away costs nothing."""


class RemoteBroker(Dials):
    """An async context manager; while it is open, names can be dialled through the broker.

    The broker may come and go: dials fail with `BrokerClosed` while it is away, or wait for
    it as they wait for an agent. What it once said to be whip's is whip's from then on; until
    it has said so for the first time every name is, so that none gets out.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        super().__init__()
        self.settings = settings
        self.broker_id = secrets.token_hex(8)
        self.activity = Activity()
        self.metrics = BrokerMetrics()
        """What the process in front counts; the broker counts dials and streams itself."""
        self._domains = {normalize(domain) for domain in settings.domains}
        self._agents: dict[str, AgentView] = {}
        self._tasks = TaskSet()
        self._by_caller = False
        self._draining = False
        self._heard = asyncio.Event()
        self._client: DialClient | None = None
        self._first_contact: asyncio.Future[Exception | None]
        self._trouble = ""

    def __repr__(self) -> str:
        return f"<RemoteBroker {self.settings.address} agents={len(self._agents)}>"

    async def __aenter__(self) -> RemoteBroker:
        if self._client is None:  # else `connect` has opened it
            self._open()
        return self

    def _open(self) -> None:
        files, context = self.settings.tls, None
        if self.settings.address.path is None:
            if files is None:
                raise SettingsError(
                    f"a broker at {self.settings.address} requires TLS: "
                    "give key, certificate and CA"
                )
            credentials = Credentials(files, Role.AGENT, self.metrics.certificate_expires)
            context = credentials.client_context
            self._tasks.spawn(credentials.watch(), "watch TLS files")
        self._client = DialClient(self.settings.address, context)
        self._first_contact = asyncio.get_running_loop().create_future()
        self._tasks.spawn(self._follow(self._client), f"news of {self.settings.address}")

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the broker; streams that still run are cut."""
        client, self._client = self._client, None
        await self._tasks.cancel_all()
        if client is not None:
            await client.close()

    @property
    def agents(self) -> list[AgentView]:
        """Every agent registered at the broker, as it told last: a fraction of a second ago."""
        return list(self._agents.values())

    async def meet(self) -> None:
        """Wait until the broker has told all that it knows, or raise why it does not."""
        error = await asyncio.shield(self._first_contact)
        if error is not None:
            raise error

    def routes(self, host: str) -> bool:
        """As `Broker.routes`."""
        try:
            name = normalize(host)
        except ValueError:
            return False
        return not self._heard.is_set() or is_within(name, self._domains)

    # What a proxy asks and tells of an embedded broker. Plugins are that other broker's.

    def resolves(self, host: str, port: int, caller: Caller) -> bool:
        """Not known here: its aliases are for domains that are listed at both."""
        return False

    @property
    def goes_by_caller(self) -> bool:
        """Whether that broker's plugins decide by the caller where a dial leads."""
        return self._by_caller

    def destination(self, host: str, port: int, caller: Caller) -> None:
        """None if every caller's dial may lead anywhere.

        Else it raises `DialError`: only a dial tells, and costs no more than asking would.
        """
        if self._by_caller:
            raise DialError(
                f"{host_port(host, port)}: where it leads is for the broker to say, at a dial"
            )

    def _leaves(self, agent: AgentView) -> bool:
        """Whether a stream to `agent` had better end soon."""
        now = self._agents.get(agent.name.full)
        return self._draining or (now is not None and now.draining)

    def mitmproxy_addons(self) -> list[tuple[str, object]]:
        """None."""
        return []

    def request_finished(self, request: RequestFinished) -> None:
        """Counted here."""
        self.metrics.whip_request_finished(request)

    control_port = 0
    reverse_port = 0
    """Agents connect to the other broker."""

    def running_bytes(self) -> dict[str, tuple[int, int]]:
        """None: the other broker counts them."""
        return {}

    def why_not_ready(self) -> str | None:
        """What keeps dials from being served; None if nothing does."""
        if self._stopping.is_set():
            return "draining"
        return self._trouble or (
            None if self._heard.is_set() else "nothing heard from the broker yet"
        )

    def kick(self, name: str) -> None:
        """Raises `UnknownName`: agents are kicked where they are registered."""
        raise UnknownName(f"{name} is registered at {self.settings.address}: kick it there")

    def reopen_logs(self) -> None:
        """There are none here."""

    def begin_drain(self) -> None:
        """Take no more forwarded connections. The broker and its agents go on."""
        self._stopping.set()

    async def drain(self, timeout: float) -> None:
        """`begin_drain`, then wait until no stream is open, at most `timeout` seconds."""
        self.begin_drain()
        try:
            async with asyncio.timeout(timeout):
                while self._client is not None and self._client.busy:
                    await self._client.wait_changed()
        except TimeoutError:
            logger.warning("some streams did not finish within %g s and are cut", timeout)

    def response_seen(self, agent: AgentView, status: int) -> None:
        """Not told of to the other broker."""

    async def _dial(
        self, host: str, port: int | str, caller: Caller, wait: float, timeout: float | None
    ) -> Stream:
        try:
            target = Target.parse(host, port)
        except ValueError as error:
            raise UnknownName(str(error)) from error
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        limit = self.settings.dial_timeout if timeout is None else timeout
        while True:
            if self._client is None:
                raise BrokerClosed(f"{target}: the connection to the broker is not open")
            left = max(0.0, deadline - loop.time())
            began = time.monotonic()
            try:
                ask = Ask(host, target.port, caller, left, limit)
                stream, served = await self._client.open(ask, limit)
                stream.describe(whip=RemoteDial(target, caller, served, began, self._leaves))
                return stream
            except BrokerClosed:
                if left <= 0:
                    raise
                await asyncio.sleep(min(FIRST_RETRY, left))
            except DialError as error:
                logger.info("dial of %s failed: %s", target, error)
                raise

    # The broker's news

    async def _follow(self, client: DialClient) -> None:
        delay = FIRST_RETRY
        while True:
            try:
                reader, writer = await client.news()
                try:
                    await self._listen(reader)
                finally:
                    writer.close()
                raise BrokerClosed(f"the broker at {client.address} has gone")
            except (DialError, RemoteProtocolError, OSError) as error:
                self._met(error)
                self._tell(str(error))
            if self._agents:
                delay = FIRST_RETRY
            self._agents.clear()
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
            delay = min(delay * 2, LAST_RETRY)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        self._agents.clear()
        while line := await reader.readline():
            kind, told = decode_news(line)
            match kind:
                case "broker":
                    self.broker_id = str(told.get("id"))
                    self._by_caller = bool(told.get("by_caller"))
                    self._draining = bool(told.get("draining"))
                case "domain":
                    self._domains.add(str(told.get("domain")))
                case "agent":
                    view = decode_agent(told.get("agent"))
                    self._agents[view.name.full] = view
                case "left":
                    self._agents.pop(str(told.get("name")), None)
                case "complete":
                    self._tell("")
                    self._heard.set()
                    self._met(None)

    def _met(self, error: Exception | None) -> None:
        if not self._first_contact.done():
            self._first_contact.set_result(error)

    def _tell(self, trouble: str) -> None:
        """Log what is wrong once, and that it is well again."""
        if trouble == self._trouble:
            return
        if trouble:
            logger.warning("%s (will keep trying)", trouble)
        else:
            logger.info("the broker at %s answers", self.settings.address)
        self._trouble = trouble


async def connect(
    address: str,
    *,
    tls: TLSFiles | tuple[str | Path, str | Path, str | Path] | None = None,
    dial_timeout: float | None = None,
) -> RemoteBroker:
    """Dial through the `whip broker` at `address`: `unix:/path`, or `host:port` with `tls`.

        async with await whip_core.connect("unix:/run/whip/dial.sock") as broker:
            reader, writer = await broker.open_connection("instance1.testdom", 80)

    Raises `BrokerClosed` if no broker is there, `NotAuthorized` if it does not let us dial,
    `SettingsError` for an address or files that cannot be used. `close` it, or use it in an
    `async with`.
    """
    files = TLSFiles.of(*tls) if isinstance(tls, tuple) else tls
    settings = RemoteSettings(address=DialAddress.parse(address), tls=files)
    if dial_timeout is not None:
        settings = RemoteSettings(address=settings.address, tls=files, dial_timeout=dial_timeout)
    broker = RemoteBroker(settings)
    broker._open()
    try:
        await broker.meet()
    except BaseException:
        await broker.close()
        raise
    return broker
