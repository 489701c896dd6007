"""One session with one broker: register, then do what it asks, as far as we expose it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from importlib.metadata import version

from client_agent.berth import Berth
from client_agent.control_client import ControlClient
from client_agent.exposure import Backend, TCPBackend
from client_agent.local import Services
from client_agent.plugins import AgentPlugins
from client_agent.reach import Reach
from client_agent.reverse import ReverseConnector
from client_agent.settings import AgentSettings
from whip_core import control
from whip_core.control_state import AGENT_SIDE, ControlState, State
from whip_core.errors import AgentGone, ServiceRefused, WhipError
from whip_core.framed import FramedConnection
from whip_core.frames import FailureCode, OpenRequested, Side
from whip_core.metrics import AgentMetrics
from whip_core.names import host_port
from whip_core.preamble import OldPreamble, Preamble
from whip_core.raw import RawConnection
from whip_core.relay import RelaySide, break_off, join
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

MAX_OPENING = 4096
"""Reverse connections and streams being opened at once: more is a broker gone mad, not a burst."""
MAX_VISITS = 256
"""Brokers that may want connections through one that vouches for them: any cluster's."""


class BrokerSession:
    """The agent's side of a registration, over a control stream that is already open."""

    def __init__(
        self,
        settings: AgentSettings,
        client: ControlClient,
        connector: ReverseConnector,
        metrics: AgentMetrics,
        plugins: AgentPlugins,
        *,
        reach: Reach,
        instance_id: str,
        on_registered: Callable[[BrokerSession], None],
        on_leaving: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._connector = connector
        self._metrics = metrics
        self._plugins = plugins
        self._reach = reach
        self._instance_id = instance_id
        self._on_registered = on_registered
        self._on_leaving = on_leaving
        self._control = ControlState(AGENT_SIDE)
        self._tasks = TaskSet()
        self._services = Services()
        self._connections: set[FramedConnection] = set()
        self._raw: set[RawConnection] = set()
        self._home: Berth | None = None
        self._visits: dict[str, Berth] = {}
        self._streams = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.registered: control.Registered | None = None
        self.duplicate_of: str | None = None
        self.draining = False
        self.broker_leaves = False
        """Whether the broker takes no new dials and is about to go."""

    @property
    def is_quiet(self) -> bool:
        """Whether no stream runs."""
        return self._quiet.is_set()

    @property
    def broker_id(self) -> str | None:
        """None at an old broker, which has none."""
        return self.registered.broker_id if self.registered else None

    async def run(self, held_brokers: tuple[str, ...]) -> None:
        """Register and serve until the control stream ends.

        Raises `ControlClosed` then, or `RemoteProtocolError`. Streams that run go on.
        """
        name = self._settings.name
        self._client.send(
            control.Register(
                hostname=name.hostname,
                domain=name.domain,
                ports=tuple(self._settings.exposure),
                protocol_version=control.PROTOCOL_VERSION,
                instance_id=self._instance_id,
                software_version=version("whip-tunnel"),
                labels=self._settings.labels,
                held_brokers=held_brokers,
            )
        )
        try:
            while True:
                self._received(await self._client.receive())
        finally:
            self._control.end()
            self._close_idle()
            await self._tasks.cancel_all()
            self._services.close()

    async def drain(self) -> None:
        """Take no new dials, say so, and wait until the streams have ended."""
        self.draining = True
        if self._control.state in (State.REGISTERED, State.DRAINING):
            self._client.send(control.Draining("the agent is stopping"))
        self._close_idle()
        await self._quiet.wait()

    async def say_goodbye(self) -> None:
        """End the control stream cleanly, if it has not ended."""
        if self._control.state is not State.ENDED:
            await self._client.close()

    def cut(self) -> None:
        """Cut the streams that still run."""
        for connection in tuple(self._connections):
            connection.close()
        for raw in tuple(self._raw):
            raw.stream.abort()

    def _received(self, message: control.BrokerMessage) -> None:
        first = self._control.state is State.REGISTERING
        self._control.receive(message)
        match message:
            case control.Registered():
                self.registered = message
                self._reach.tell(message.reverse_host, message.reverse_port)
                self._home = self._berth(
                    message.reverse_host,
                    message.reverse_port,
                    Preamble(message.session_id, message.secret),
                )
            case control.AlreadyRegistered(broker_id):
                self.duplicate_of = broker_id
            case control.Ping(sequence, ping_timestamp):
                self._client.send(control.Pong(sequence, ping_timestamp, time.time_ns()))
            case control.Connect():
                self._asked_to_connect(message)
            case control.Park(connections):
                if self._home is not None:
                    self._home.parker.aim(0 if self.draining else connections)
            case control.Visit():
                self._asked_to_visit(message)
            case control.Draining(reason):
                logger.info("the broker takes no more agents: %s", reason)
                self.broker_leaves = True
                self._on_leaving()
            case _:
                pass
        if first and self._control.state is not State.ENDED:
            self._on_registered(self)

    def _asked_to_connect(self, request: control.Connect) -> None:
        refusal = self._refusal(request, self._reach.refusal)
        if refusal is not None:
            logger.warning("broker's request %s refused: %s", request.connection_id[:8], refusal)
            self._client.send(control.ConnectFailed(request.connection_id, refusal))
            return
        answer = self._answer_old if self.registered is None else self._answer
        self._tasks.spawn(answer(request), f"connect {request.connection_id[:8]}")

    def _refusal(
        self, request: control.Connect, of_place: Callable[[str, int], str | None]
    ) -> str | None:
        if request.local_port not in self._settings.exposure:
            return f"this agent does not expose port {request.local_port}"
        if self.draining:
            return "this agent is draining"
        if len(self._tasks) >= MAX_OPENING:
            return f"{len(self._tasks)} connections are being opened already"
        return of_place(request.host, request.port)

    # Brokers of ours: reverse connections speak frames

    def _berth(self, host: str, port: int, introduction: Preamble) -> Berth:
        return Berth(host, port, introduction, self._connect_back, self._tasks)

    async def _answer(self, request: control.Connect) -> None:
        assert self._home is not None
        await self._answer_from(self._home, request)

    async def _answer_from(self, berth: Berth, request: control.Connect) -> None:
        try:
            await self._connect_back(berth, request.host, request.port, request.connection_id)
        except WhipError as error:
            self._failed(request, error)

    async def _connect_back(
        self, berth: Berth, host: str, port: int, connection_id: str
    ) -> FramedConnection:
        connection = FramedConnection(
            Side.ACCEPTOR,
            on_open=functools.partial(self._asked_to_open, berth),
            on_idle=functools.partial(self._became_idle, berth),
            on_lost=functools.partial(self._lost, berth),
        )
        if (
            berth is self._home
            and not connection_id
            and (refusal := self._reach.refusal(host, port))
        ):
            raise AgentGone(
                f"the broker has us connect back to {host_port(host, port)}, but {refusal}"
            )
        introduction = dataclasses.replace(berth.introduction, connection_id=connection_id)
        try:
            await self._connector.open(connection, host, port, introduction)
        except WhipError:
            if not berth.connections:
                self._end_visit(berth)
            raise
        if not connection.lost:
            self._connections.add(connection)
            berth.connections.add(connection)
        return connection

    # Brokers that we have no control stream to: ours vouches for them

    def _asked_to_visit(self, visit: control.Visit) -> None:
        dial = visit.connection_id
        request = control.Connect(dial, visit.reverse_host, visit.reverse_port, visit.local_port)
        refusal = self._refusal(request, self._reach.neighbour_refusal)
        if self.registered is None or not self.registered.cluster:
            refusal = "this broker has said nothing of a fabric"
        berth = self._visits.get(visit.session_id)
        if berth is None and len(self._visits) >= MAX_VISITS:
            refusal = f"this agent visits {len(self._visits)} brokers already"
        if dial and refusal is not None:
            logger.warning("broker's request %s refused: %s", dial[:8], refusal)
            self._client.send(control.ConnectFailed(dial, refusal))
        elif berth is not None or (dial and refusal is None):
            if berth is None:
                logger.info("visiting the broker %s for its dials", visit.broker_id)
                introduction = Preamble(visit.session_id, visit.secret)
                berth = self._berth(visit.reverse_host, visit.reverse_port, introduction)
                self._visits[visit.session_id] = berth
            if dial:
                self._tasks.spawn(self._answer_from(berth, request), f"connect {dial[:8]}")
            berth.parker.aim(0 if self.draining else visit.connections)
            if not visit.connections:
                self._end_visit(berth)

    def _end_visit(self, berth: Berth) -> None:
        """Whoever still wants the connections asks again."""
        if self._visits.get(berth.introduction.session_id) is berth:
            del self._visits[berth.introduction.session_id]
            berth.parker.close()

    def _asked_to_open(
        self, berth: Berth, connection: FramedConnection, request: OpenRequested
    ) -> asyncio.Task[None]:
        berth.parker.taken(connection)
        return self._tasks.spawn(self._open(connection, request), "open")

    async def _open(self, connection: FramedConnection, request: OpenRequested) -> None:
        dial_id = request.dial_id.hex()
        dial = dial_id[:8]
        if request.port not in self._settings.exposure:
            logger.warning("dial %s refused: port %d is not exposed", dial, request.port)
            connection.refuse(
                FailureCode.PORT_NOT_EXPOSED, f"this agent does not expose port {request.port}"
            )
            return
        if self.draining:
            connection.refuse(FailureCode.DRAINING, "this agent is draining")
            return
        try:
            backend = self._backend(request.port, dial_id)
            side = await self._services.connect(backend)
        except ServiceRefused as error:
            logger.warning("dial %s: %s", dial, error)
            connection.refuse(FailureCode.SERVICE_REFUSED, str(error))
            return
        if connection.lost:
            _drop(side)
            return
        tunnel = RelaySide()
        connection.accept(extra={}).attach(tunnel)
        self._relay(dial, request.port, backend, tunnel, side)

    def _became_idle(self, berth: Berth, connection: FramedConnection) -> None:
        if self.draining or self._control.state is State.ENDED:
            connection.close()
        else:
            berth.parker.parked(connection)

    def _lost(self, berth: Berth, connection: FramedConnection) -> None:
        self._connections.discard(connection)
        berth.connections.discard(connection)
        if not berth.connections:
            self._end_visit(berth)
        berth.parker.lost(connection)

    def _close_idle(self) -> None:
        if self._home is not None:
            self._home.parker.close()
        for berth in self._visits.values():
            berth.parker.close()
        self._visits.clear()
        for connection in tuple(self._connections):
            if connection.is_parked:
                connection.close()

    # Old brokers: one bare connection for each dial

    async def _answer_old(self, request: control.Connect) -> None:
        try:
            backend = self._backend(request.local_port, request.connection_id)
            side = await self._services.connect(backend)
        except ServiceRefused as error:
            self._failed(request, error)
            return
        raw = RawConnection(
            request.connection_id, extra={}, on_finished=lambda _: self._raw.discard(raw)
        )
        try:
            await self._connector.open(
                raw, request.host, request.port, OldPreamble(request.connection_id)
            )
        except WhipError as error:
            _drop(side)
            self._failed(request, error)
            return
        except asyncio.CancelledError:
            _drop(side)
            raise
        if raw.stream.cause is None:
            self._raw.add(raw)
        tunnel = RelaySide()
        raw.stream.attach(tunnel)
        self._relay(request.connection_id[:8], request.local_port, backend, tunnel, side)

    def _failed(self, request: control.Connect, error: Exception) -> None:
        """Tell why, but not what we saw at a host that the broker alone has named."""
        logger.warning("dial %s: %s", request.connection_id[:8], error)
        told = str(error)
        if isinstance(error, AgentGone) and not self._reach.is_own(request.host):
            where = host_port(request.host, request.port)
            told = f"the agent cannot connect back to {where}; its log says why"
        self._client.send(control.ConnectFailed(request.connection_id, told))

    # Both

    def _backend(self, port: int, dial_id: str) -> Backend:
        """The service behind an exposed port, as far as plugins let it be. `ServiceRefused`."""
        exposed = self._settings.exposure[port]
        return self._plugins.backend(exposed, port=port, dial_id=dial_id, broker_id=self.broker_id)

    def _relay(
        self, dial: str, port: int, backend: Backend, tunnel: RelaySide, side: RelaySide
    ) -> None:
        domain = self._settings.name.domain
        # The one that it was exposed with: those that a plugin may think of have no bound.
        exposed = self._settings.exposure[port]
        local_port = str(exposed.port) if isinstance(exposed, TCPBackend) else "unix"
        logger.debug("dial %s: open to %s", dial, backend)
        started = time.monotonic()
        if not self._streams:
            self._quiet.clear()
        self._streams += 1
        connections = self._metrics.connections(domain, local_port)
        connections.inc()

        def done() -> None:
            logger.info("dial %s to %s: closed, %.1f s", dial, backend, time.monotonic() - started)
            connections.dec()
            self._streams -= 1
            if not self._streams:
                self._quiet.set()

        join(tunnel, side, done)


def _drop(side: RelaySide) -> None:
    if side.transport is not None:
        break_off(side.transport)
