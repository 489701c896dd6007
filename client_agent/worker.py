"""Keeps a session to one broker address, for ever."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from client_agent.backoff import Backoff
from client_agent.choice import Standing
from client_agent.control_client import ControlClient, ControlClosed
from client_agent.egress_tunnel import way_out
from client_agent.endpoints import Address, Endpoint
from client_agent.plugins import AgentPlugins
from client_agent.reach import Reach
from client_agent.renewal import Renewal
from client_agent.reverse import ReverseConnector
from client_agent.session import BrokerSession
from client_agent.settings import AgentSettings
from whip_core.channel import channel_credentials_of
from whip_core.credentials import Credentials
from whip_core.errors import RemoteProtocolError, SettingsError
from whip_core.metrics import AgentMetrics
from whip_core.settings import require_plaintext_allowed
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds after which a broker that has not answered is one that does not: a registration
takes a few round trips."""
NEVER = float("inf")
REFUSALS = frozenset(
    {"ALREADY_EXISTS", "PERMISSION_DENIED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
)
"""gRPC statuses by which a broker says that it will not have this registration."""

UNTRUSTED = "its certificate is not from a CA in --tls-ca-cert-path"
CAUSES = {
    "Hostname Verification": "its certificate is for other names, not for {name}",
    "Peer name": "its certificate is for other names, not for {name}",
    "CERTIFICATE_VERIFY_FAILED: unable to get": UNTRUSTED,
    # From a broker that shows its CA's certificate besides, as OpenSSL does where it has it.
    "CERTIFICATE_VERIFY_FAILED: self signed certificate in": UNTRUSTED,
    "WRONG_VERSION_NUMBER": "it does not speak TLS; was it started with --tls=false?",
    "HTTP/2": "what listens there does not speak gRPC",
}
UNANSWERED = "it has left a ping unanswered: it, or the way to it, is dead"
LOSSES = {"ping timeout": UNANSWERED, "keepalive watchdog timeout": UNANSWERED}
"""What parts of gRPC's texts (1.67 to 1.85) mean to whoever has to do something about it: of
connections that did not come about, and of such as were lost."""


class Brokers(Protocol):
    """What a worker needs to know of its siblings' sessions."""

    def held(self) -> tuple[str, ...]:
        """Ids of the brokers that some worker has a live session with."""

    async def wait_until_free(self, broker_id: str) -> None:
        """Wait until no worker has a live session with that broker."""

    def changed(self) -> None:
        """A session has begun or ended."""


class Worker:
    """One address; `run` until cancelled or drained."""

    def __init__(
        self,
        settings: AgentSettings,
        address: Address,
        endpoint: Endpoint,
        brokers: Brokers,
        metrics: AgentMetrics,
        plugins: AgentPlugins,
        *,
        instance_id: str,
        credentials: Credentials | None,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self.address = address
        self._settings = settings
        self._endpoint = endpoint
        self._brokers = brokers
        self._metrics = metrics
        self._plugins = plugins
        self._instance_id = instance_id
        self._credentials = credentials
        self._backoff = backoff()
        self._trouble = ""
        self._draining = False
        self._was_registered = False
        self._aside = False
        self._began = time.monotonic()
        self._tasks = TaskSet()
        self._running: set[BrokerSession] = set()
        self._renewal = Renewal(NEVER)
        self._successor: asyncio.Task[str] | None = None
        self.live: BrokerSession | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.address} {'registered' if self.live else 'not registered'}>"

    @property
    def standing(self) -> Standing:
        """What has become of this address so far."""
        if self.live is not None:
            if self.live.broker_leaves:
                return Standing.FAILING
            registered = self.live.registered
            return Standing.JOINED if registered and registered.cluster else Standing.ALONE
        if self._aside:
            return Standing.ASIDE
        if self._trouble or time.monotonic() - self._began >= PATIENCE:
            return Standing.FAILING
        return Standing.NEW

    async def run(self) -> None:
        try:
            while not self._draining:
                trouble = await self._serve()
                if self._draining:
                    return
                if trouble:
                    self._tell(trouble)
                await asyncio.sleep(self._backoff.next_delay())
        finally:
            await self._tasks.cancel_all()

    def renew_if_due(self) -> None:
        """To be called now and then: begin the session that follows one whose certificate ends."""
        tls, live = self._credentials, self.live
        if tls is None or live is None or self._draining or self._successor is not None:
            return
        # An old broker ends no session, and may not know that it is us again.
        if live.broker_id is not None and self._renewal.is_due(time.time(), tls.expires_at):
            renewing, self._renewal = self._renewal, Renewal(NEVER)
            self._successor = self._tasks.spawn(
                self._renew(live, renewing), f"renew the session at {self.address}"
            )

    async def drain(self) -> None:
        """Take no new dials and wait until the streams have ended, then say goodbye.

        A control stream that ends meanwhile is not opened again.
        """
        self._draining = True
        await asyncio.gather(*(session.drain() for session in tuple(self._running)))
        if self.live is not None:
            await self.live.say_goodbye()

    @property
    def is_quiet(self) -> bool:
        """Whether no stream runs."""
        return all(session.is_quiet for session in self._running)

    def cut(self) -> None:
        """Cut the streams that still run."""
        for session in tuple(self._running):
            session.cut()

    async def _serve(self) -> str:
        """Sessions that follow each other without a gap; gives why the last of them ended.

        One that was replaced counts as live until the session that follows it is there.
        """
        trouble = await self._session()
        while (following := self._successor) is not None:
            self._successor = None
            trouble = await following
        if self.live is not None:
            self._ended(self.live)
        return trouble

    async def _renew(self, before: BrokerSession, renewal: Renewal) -> str:
        """A session that takes the place of the one `before`, which goes on if this one fails."""
        trouble = await self._session(before)
        if self._successor is asyncio.current_task():
            self._successor = None
            if self.live is before:
                renewal.failed(time.time())
                self._renewal = renewal
                logger.warning("the session could not be renewed (will keep trying): %s", trouble)
        return trouble

    async def _session(self, before: BrokerSession | None = None) -> str:
        """One session; gives why it ended, empty if that has been logged."""
        try:
            await self._serve_once(before)
        except ControlClosed as closed:
            return self._explain(closed)
        except (RemoteProtocolError, SettingsError) as error:
            return f"broker at {self.address}: {error}"
        except Exception:
            logger.exception("the session with the broker at %s failed", self.address)
        return ""

    async def _serve_once(self, before: BrokerSession | None) -> None:
        """One session, from connecting to the end of its control stream, which it raises."""
        tls = self._credentials
        if tls is None:
            require_plaintext_allowed("connect to", self.address.ip, self._settings.allow_plaintext)
        tls_name = self._endpoint.tls_name
        connector = ReverseConnector(
            tls.client_context if tls else None,
            tls_name,
            allow_plaintext=self._settings.allow_plaintext,
            egress=self._settings.egress,
        )
        credentials = channel_credentials_of(*tls.pem) if tls else None
        renewal = Renewal(tls.expires_at if tls else NEVER)
        async with (
            self._way_out() as target,
            ControlClient(self.address, tls_name, credentials, target=target) as client,
        ):
            session = BrokerSession(
                self._settings,
                client,
                connector,
                self._metrics,
                self._plugins,
                reach=Reach(self._endpoint, self.address, self._settings.reverse_hosts),
                instance_id=self._instance_id,
                on_registered=lambda session: self._registered(session, renewal),
                on_leaving=self._brokers.changed,
            )
            self._running = {
                old for old in self._running if old is self.live or not old.is_quiet
            } | {session}
            held = set(self._brokers.held())
            if before is not None:
                held.discard(before.broker_id or "")
            replaced = False
            try:
                await session.run(tuple(held))
            except ControlClosed as closed:
                replaced = closed.status == "ABORTED" and self._is_followed()
                if not replaced:
                    await self._step_aside(session, closed)
                raise
            finally:
                if not replaced:
                    self._ended(session)

    def _is_followed(self) -> bool:
        """Whether another session is about to take, or has taken, the place of this task's."""
        return self._successor not in (None, asyncio.current_task())

    @asynccontextmanager
    async def _way_out(self) -> AsyncIterator[str | None]:
        """Where gRPC connects to instead of the address, if it has to go through a proxy.

        What the proxy says takes the place of what gRPC makes of it.
        """
        ip, port = self.address.ip, self.address.port
        async with way_out(self._settings.egress, ip, port) as bridge:
            try:
                yield bridge.target if bridge else None
            except ControlClosed as closed:
                if bridge is None or bridge.failure is None:
                    raise
                why = f"last error: {self.address}: {bridge.failure}"
                raise ControlClosed(closed.status, why) from closed

    def _registered(self, session: BrokerSession, renewal: Renewal) -> None:
        renewed = self.live is not None
        self.live = session
        self._renewal = renewal
        self._backoff.reset()
        self._trouble = ""
        self._brokers.changed()
        if renewed:
            logger.info("renewed the session at the broker %s", self.address)
            return
        self._metrics.registered(again=self._was_registered)
        self._was_registered = True
        kind = "broker" if session.broker_id else "old broker"
        logger.info("registered %s at the %s %s", self._settings.name, kind, self.address)

    def _ended(self, session: BrokerSession) -> None:
        if self.live is session:
            self.live = None
            self._backoff.lost()
            self._brokers.changed()
            self._metrics.unregistered()

    async def _step_aside(self, session: BrokerSession, closed: ControlClosed) -> None:
        """Wait while another of our sessions serves the same broker by another address."""
        self._ended(session)
        broker_id = session.duplicate_of or session.broker_id
        if closed.status == "ABORTED" and broker_id in self._brokers.held():
            assert broker_id is not None
            logger.info("%s is a broker that we are registered at already", self.address)
            self._aside = True
            self._brokers.changed()
            try:
                await self._brokers.wait_until_free(broker_id)
            finally:
                self._aside = False

    def _explain(self, closed: ControlClosed) -> str:
        if closed.status in REFUSALS:
            return f"the broker at {self.address} refused the registration: {closed}"
        if closed.status == "UNIMPLEMENTED":
            return f"what listens at {self.address} is not a whip broker"
        if closed.status == "OK":
            return f"the broker at {self.address} closed the control stream"
        _, failed_to_connect, details = str(closed).rpartition("last error: ")
        if not failed_to_connect:
            cause = next((LOSSES[part] for part in LOSSES if part in details), details)
            return f"lost the broker at {self.address} (will keep trying): {cause}"
        return f"no broker at {self.address} (will keep trying): {self._cause(details)}"

    def _cause(self, details: str) -> str:
        """gRPC's words, or the plain ones for what they say."""
        if "Socket closed" in details:
            if self._settings.tls is None:
                return "it hangs up at once; does it want TLS?"
            return "it hangs up at once; is our certificate from a CA that it trusts?"
        for fragment, cause in CAUSES.items():
            if fragment in details:
                return cause.format(name=self._endpoint.tls_name)
        return details.rpartition(f"{self.address}: ")[2]

    def _tell(self, trouble: str) -> None:
        """Log what went wrong once, not at each attempt."""
        level = logging.DEBUG if trouble == self._trouble else logging.WARNING
        self._trouble = trouble
        logger.log(level, trouble)
        self._brokers.changed()
