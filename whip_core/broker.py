"""The broker: keeps agents, and opens streams to them for whoever asks in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from whip_core import control, settings
from whip_core.activity import Activity
from whip_core.admission import Admission
from whip_core.agents import (
    AgentView,
    Destination,
    Peer,
    Refusal,
    Registration,
    RequestFinished,
)
from whip_core.audit import AuditLog
from whip_core.authorization import CertificateCoversName, PolicyRules
from whip_core.awaited import Awaited
from whip_core.caller import Caller
from whip_core.certificates import Role, check_relays
from whip_core.control_server import ControlServer, ControlStream
from whip_core.credentials import Credentials
from whip_core.dial_address import DialAddress
from whip_core.dial_desk import DialDesk
from whip_core.dial_socket import Diallers, DialSocket
from whip_core.dialer import Dialer
from whip_core.dials import Dials
from whip_core.errors import (
    RegistrationError,
    RemoteProtocolError,
    SettingsError,
    UnknownName,
)
from whip_core.fabrics import ShippedFabrics
from whip_core.metrics import BrokerMetrics
from whip_core.names import AgentName, check_labels, check_port, is_within, normalize
from whip_core.neighbours import Neighbours
from whip_core.outliers import OutlierEjection
from whip_core.picker_choice import make_picker
from whip_core.plugin_settings import PluginSettings
from whip_core.plugins import Plugins
from whip_core.policy import Policy
from whip_core.policy_file import parse_policy
from whip_core.preamble import OldPreamble
from whip_core.rare_log import RareLog
from whip_core.registry import Contested, Joined, Registry
from whip_core.relaying import Relaying
from whip_core.reverse_listener import Arrival, ReverseListener
from whip_core.session import Session
from whip_core.stream import Stream
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

MAX_PORTS = 1024
"""Ports one agent may expose: far above any service, far below what would hurt to keep."""


class Broker(Dials):
    """An async context manager: while it is open, agents register and can be dialled.

    At its end streams that still run are cut: their readers are told so.

        async with Broker(BrokerSettings(external_host="broker.example", tls=files)) as broker:
            reader, writer = await broker.open_connection("instance1.testdom", 80)

    `plugins` are objects with hooks (`hookspecs`); the built-in picker, certificate rule
    and metrics stand behind them. Raises `SettingsError` for one that cannot be used, or
    for a setting that no plugin has. Entering raises `SettingsError` if a file or a port
    cannot be used.
    """

    def __init__(
        self,
        settings: settings.BrokerSettings,
        *,
        plugins: Sequence[object] = (),
        plugin_settings: PluginSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.broker_id = secrets.token_hex(8)
        self.metrics = BrokerMetrics()
        rules: list[object] = [CertificateCoversName()]
        if settings.policy is not None:
            rules.append(PolicyRules(_read_policy(settings.policy)))
        self._outliers = OutlierEjection(self._eject) if settings.outlier_ejection else None
        self._desk = DialDesk(
            lambda: self._dialer,
            lambda: self.agents,
            self._view,
            self._known_domains,
            lambda: (self.broker_id, self.goes_by_caller),
            self._stopping,
        )
        self._audit_log = AuditLog(settings.audit_log) if settings.audit_log else None
        self.activity = Activity()
        self.plugins = Plugins(
            [
                make_picker(settings.picker),
                *rules,
                *([self._outliers] if self._outliers else []),
                ShippedFabrics(),
                *([self._desk] if settings.dial_listen else []),
                self.metrics,
                self.activity,
                *([self._audit_log] if self._audit_log else []),
                *plugins,
            ],
            plugin_settings,
        )
        self._domains = tuple(normalize(domain) for domain in settings.domains)
        self._registry: Registry[Session] = Registry()
        self._awaited: Awaited[Session] = Awaited()
        self._refusals = RareLog(logger)
        self._sessions_by_id: dict[str, Session] = {}
        self._admission = Admission(settings.limits)
        self._dialer = Dialer(self._registry, self.plugins, settings.dial_timeout, self._admission)
        self._dial_socket: DialSocket | None = None
        self._neighbours: Neighbours | None = None
        self._credentials: Credentials | None = None
        self._tasks = TaskSet()
        self._stack = contextlib.AsyncExitStack()
        self.metrics.watch_parked(self._parked_by_domain)
        self.metrics.watch_ejected(self._ejected_by_domain)

    async def __aenter__(self) -> Broker:
        self.plugins.start(self.metrics.registry)
        files = self.settings.tls
        if files is not None:
            self._credentials = Credentials(files, Role.BROKER, self.metrics.certificate_expires)
        credentials = self._credentials
        async with contextlib.AsyncExitStack() as stack:
            if self._audit_log is not None:
                self._audit_log.start()
                stack.callback(self._audit_log.close)
            self._reverse = await stack.enter_async_context(
                ReverseListener(
                    self._welcome,
                    self.settings.listen_hosts,
                    self.settings.tcp_listen_port,
                    credentials.server_context if credentials else None,
                    handshake_timeout=self.settings.handshake_timeout,
                    preamble_timeout=self.settings.preamble_timeout,
                    limits=self.settings.limits,
                    on_refused=self._connection_refused,
                )
            )
            self._control = await stack.enter_async_context(
                ControlServer(
                    self,
                    self.settings.listen_hosts,
                    self.settings.grpc_listen_port,
                    credentials.grpc_server() if credentials else None,
                    register_timeout=self.settings.handshake_timeout,
                    limits=self.settings.limits,
                )
            )
            if self.settings.fabric is not None:
                self._dialer.elsewhere = self._neighbours = await stack.enter_async_context(
                    self._make_neighbours(self.settings.fabric)
                )
            if self.settings.dial_listen:
                self._dial_socket = await stack.enter_async_context(self._make_dial_socket())
            self._stack = stack.pop_all()
        if credentials is not None:
            self._tasks.spawn(credentials.watch(self._end_unbelieved), "watch TLS files")
        self._dialer.closed = False
        logger.info(
            "broker %s: agents register at port %d and connect back to %s:%d%s",
            self.broker_id,
            self.control_port,
            *self._reverse_address,
            "" if files else ", without TLS",
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dialer.closed = True
        self._dialer.agents_changed()
        # First of all: agents open a new connection for each parked one that is closed.
        self._reverse.close()
        for session in self._registry:
            self._end(session, RegistrationError("the broker is shutting down", code="closing"))
        self._dialer.cut()
        await self._tasks.cancel_all()
        await self._stack.aclose()

    def reopen_logs(self) -> None:
        """Write the audit log to a new file of its name, as the old one was moved away."""
        if self._audit_log is not None:
            self._audit_log.reopen()

    def begin_drain(self) -> None:
        """Take no more agents or forwarded connections, and say so to the agents there are.

        Dials go on, for those who have still something to finish.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._desk.draining()
        if self._neighbours is not None:
            self._neighbours.holder.drain()
        for session in self._registry:
            if session.speaks_frames:
                session.send(control.Draining("the broker is stopping"))

    async def drain(self, timeout: float) -> None:
        """`begin_drain`, then wait until no stream is open, at most `timeout` seconds."""
        self.begin_drain()
        try:
            async with asyncio.timeout(timeout):
                await self._dialer.wait_quiet()
        except TimeoutError:
            logger.warning("some streams did not finish within %g s and are cut", timeout)

    @property
    def control_port(self) -> int:
        """Where agents register."""
        return self._control.port

    @property
    def reverse_port(self) -> int:
        """Where agents' reverse connections arrive."""
        return self._reverse.port

    @property
    def _reverse_address(self) -> tuple[str, int]:
        """What agents are told to connect back to."""
        return self.settings.external_host, self.settings.external_port or self.reverse_port

    @property
    def dial_addresses(self) -> list[DialAddress]:
        """Where other processes can dial through this broker."""
        return list(self._dial_socket.bound) if self._dial_socket is not None else []

    def _make_neighbours(self, fabric: settings.FabricSettings) -> Neighbours:
        return Neighbours(
            self.plugins.fabric(fabric),
            fabric.cluster,
            self.broker_id,
            lambda: self._reverse_address,
            self._sessions_by_id,
            self._registry,
            self._awaited,
            self.plugins,
            self.metrics.fabric_message_dropped,
            self._make_relaying() if self.settings.relay else None,
        )

    def _make_relaying(self) -> Relaying:
        settings = self.settings
        if settings.tls is not None:
            check_relays(settings.tls)
        return Relaying(
            self._dialer,
            lambda: self._reverse_address,
            self._credentials,
            allow_plaintext=settings.allow_plaintext,
            timeout=settings.dial_timeout,
        )

    def _make_dial_socket(self) -> DialSocket:
        settings = self.settings
        return DialSocket(
            self._desk,
            settings.dial_listen,
            self._credentials.server_context if self._credentials else None,
            Diallers(settings.dial_allow, settings.dial_trust),
            handshake_timeout=settings.handshake_timeout,
        )

    @property
    def agents(self) -> list[AgentView]:
        """Every registered agent, as it is now."""
        return [session.view() for session in self._registry]

    def running_bytes(self) -> dict[str, tuple[int, int]]:
        """To and from each agent, by its full name, in the streams that are open."""
        return self._dialer.running_bytes()

    def kick(self, name: str) -> None:
        """End an agent's session: its name is free, streams that run may finish.

        The agent is told and may come back. Raises `UnknownName` if nobody has the name.
        """
        try:
            session = self._registry.get(normalize(name))
        except ValueError as error:
            raise UnknownName(str(error)) from error
        if session is None:
            raise UnknownName(f"no agent is registered as {normalize(name)}")
        self._end(session, RegistrationError("ended by the operator", code="kicked"))

    def why_not_ready(self) -> str | None:
        """None while agents can register and be dialled."""
        if self._dialer.closed:
            return "the broker does not listen"
        return "draining" if self._stopping.is_set() else None

    def mitmproxy_addons(self) -> list[tuple[str, object]]:
        """What plugins bring for a mitmproxy that this broker is in, with the plugins' names.

        Raises `SettingsError` if one of them fails at it.
        """
        return self.plugins.mitmproxy_addons()

    def request_finished(self, request: RequestFinished) -> None:
        """Told by the proxy that this broker is in, for the plugins."""
        self.plugins.request_finished(request)

    def _parked_by_domain(self) -> dict[str, int]:
        parked: dict[str, int] = {}
        for session in self._registry:
            domain = session.name.domain
            parked[domain] = parked.get(domain, 0) + session.parked
        return parked

    def _ejected_by_domain(self) -> dict[str, int]:
        return dict(Counter(session.name.domain for session in self._registry if session.ejected))

    def routes(self, host: str) -> bool:
        """Whether `host` belongs to whip: it, or its domain, is or was registered or is listed.

        Such a name must never be looked for anywhere else. Never raises.
        """
        try:
            name = normalize(host)
        except ValueError:
            return False
        return is_within(name, self._domains) or self._registry.is_ours(name)

    async def _dial(
        self, host: str, port: int, caller: Caller, wait: float, timeout: float | None
    ) -> Stream:
        return await self._dialer.dial(host, port, caller=caller, wait=wait, timeout=timeout)

    def _view(self, name: str) -> AgentView | None:
        session = self._registry.get(name)
        return session.view() if session is not None else None

    def _known_domains(self) -> list[str]:
        return [*self._domains, *self._registry.domains]

    @property
    def goes_by_caller(self) -> bool:
        """Whether it can depend on the caller where a dial leads; else `destination` is None."""
        return self.plugins.go_by_caller

    def destination(self, host: str, port: int, caller: Caller) -> Destination | None:
        """Where a dial for `caller` has to lead; None if every caller's may lead anywhere.

        For who has a stream already and wants to serve another caller on it: it will do if
        the destination admits that of `writer.get_extra_info("whip")`. Opens nothing.
        Raises `DialError` if a plugin fails, or nobody has the name any more.
        """
        return self._dialer.destination(host, port, caller)

    # Agents: what the control server asks (`control_server.ControlHandler`)

    async def register(self, stream: ControlStream, message: control.Register) -> Session:
        registration = _checked(message)
        if self._stopping.is_set():
            raise RegistrationError("the broker is stopping", code="closing")
        if self.broker_id in message.held_brokers:
            held = self._registry.get(registration.name.full)
            if held is not None and held.instance_id == registration.instance_id:
                stream.send(control.AlreadyRegistered(self.broker_id))
                raise RegistrationError(
                    "you are registered here by another address", code="already-registered"
                )
        if (problem := self._certificate_problem(stream.peer)) is not None:
            raise RegistrationError(f"{registration.name} refused: {problem}", code="certificate")
        veto = await self.plugins.veto_of_agent(registration, stream.peer)
        if veto is not None:
            raise RegistrationError(f"{registration.name} refused: {veto}", code="not-authorized")
        if self._registry.get(registration.name.full) is None:
            self._admission.check_agent(stream.peer)
        session = Session(stream, registration, self._reverse_address, self._awaited)
        joined = await self._enter(session)
        if joined.replaced is not None:
            self._end(
                joined.replaced,
                RegistrationError("replaced by a newer session", code="replaced"),
            )
        self._joined(session, message)
        return session

    async def _enter(self, session: Session) -> Joined[Session]:
        """Enter a session; who holds the name, and does not answer a probe, loses it."""
        while True:
            outcome = self._registry.register(session)
            if isinstance(outcome, Joined):
                return outcome
            holder = outcome.holder
            if await holder.answers(self.settings.probe_timeout):
                raise self._taken(session, outcome)
            if self._registry.get(session.name.full) is holder:
                logger.warning("agent %s does not answer: its name is taken over", holder.name)
                self.plugins.name_taken_over(holder.view(), session.view())
                return self._registry.take_over(session)

    def _taken(self, session: Session, contested: Contested[Session]) -> RegistrationError:
        host, port = contested.holder.peer.address
        return RegistrationError(
            f"the name {session.name} is held by a live agent at {host} port {port}; "
            "choose another --hostname, or stop that agent",
            code="name-taken",
        )

    def _joined(self, session: Session, message: control.Register) -> None:
        session.control.receive(message)
        self._admission.agent_joined(session.peer)
        self._sessions_by_id[session.session_id] = session
        if session.speaks_frames:
            host, port = self._reverse_address
            session.send(
                control.Registered(
                    protocol_version=control.PROTOCOL_VERSION,
                    broker_id=self.broker_id,
                    session_id=session.session_id,
                    secret=session.secret,
                    reverse_host=host,
                    reverse_port=port,
                    software_version=version("whip-tunnel"),
                    cluster=self._neighbours.cluster if self._neighbours else "",
                )
            )
            session.pool.start()
        logger.info(
            "agent %s registered from %s, ports %s",
            session.name,
            session.peer.address[0],
            ",".join(map(str, session.ports)) or "none",
        )
        # Spread over the interval from the start, so that a thousand agents that come
        # back at once are not pinged at once for ever after.
        self._ping_later(session, random.uniform(0, self.settings.ping_interval))  # noqa: S311
        self.plugins.agent_joined(session.view())
        if self._neighbours is not None:
            self._neighbours.holder.joined(session)
        self._dialer.agents_changed()

    def _ping_later(self, session: Session, delay: float) -> None:
        loop = asyncio.get_running_loop()
        session.next_ping = loop.call_later(delay, self._ping, session)

    def _ping(self, session: Session) -> None:
        silent = session.silent_for
        if silent >= self.settings.ping_timeout:
            # Whatever TCP believes of it, the path is dead, or the agent.
            why = f"it has not answered for {silent:.0f} s"
            self._end(session, RegistrationError(why, code="unresponsive"))
            return
        session.ping()
        self._ping_later(session, self.settings.ping_interval)

    def received(self, session: Session, message: control.AgentMessage) -> None:
        was_draining = session.draining
        round_trip = session.received(message)
        if session.draining != was_draining:
            self._registry.standing_changed(session)
            self._desk.agent_changed(session.name.full)
        if round_trip is not None:
            self.plugins.round_trip(session.view(), round_trip)
        if self._neighbours is not None:
            match message:
                case control.ConnectFailed(connection_id, why):
                    self._neighbours.holder.connect_failed(connection_id, why)
                case control.Draining():
                    self._neighbours.holder.draining(session)

    def left(self, session: Session, reason: str) -> None:
        self._end(session, None, reason)

    def _certificate_problem(self, peer: Peer) -> str | None:
        return self._credentials.problem(peer.certificate) if self._credentials else None

    def _end_unbelieved(self) -> None:
        """End the sessions whose certificate has expired or was revoked meanwhile."""
        for session in self._registry:
            if (problem := self._certificate_problem(session.peer)) is not None:
                logger.warning("the session of agent %s is ended: %s", session.name, problem)
                self._end(session, RegistrationError(problem, code="certificate"))

    def refused(self, peer: Peer, name: str, why: RegistrationError) -> None:
        if why.code == "already-registered":
            return
        self._refusals.warning("refused agent %s from %s: %s", name, peer.address[0], why)
        self.plugins.refused(Refusal("agent", why.code, peer.address, str(why), name))

    def _connection_refused(self, address: tuple[str, int], reason: str, text: str) -> None:
        self.plugins.refused(Refusal("connection", reason, address, text))

    def _end(
        self, session: Session, why: RegistrationError | None, reason: str | None = None
    ) -> None:
        """End a session, once, and forget it; a newer one of its name stays."""
        if self._sessions_by_id.pop(session.session_id, None) is None:
            return
        reason = reason or str(why)
        self._registry.remove(session)
        if self._neighbours is not None:
            self._neighbours.holder.left(session)
        self._admission.agent_left(session.peer)
        for timer in (session.next_ping, session.readmission):
            if timer is not None:
                timer.cancel()
        view = session.view()
        session.end(why)
        logger.info("agent %s left: %s", session.name, reason)
        self.plugins.agent_left(view, reason)

    # Ejection: what `OutlierEjection` decides

    def _eject(self, agent: AgentView, seconds: float) -> None:
        session = self._sessions_by_id.get(agent.session_id)
        if session is None:
            return
        session.ejected = True
        self._registry.standing_changed(session)
        loop = asyncio.get_running_loop()
        session.readmission = loop.call_later(seconds, self._readmit, session)

    def _readmit(self, session: Session) -> None:
        session.ejected = False
        self._registry.standing_changed(session)
        assert self._outliers is not None
        self._outliers.readmitted(session.view())

    def response_seen(self, agent: AgentView, status: int) -> None:
        """Tell the plugins of an HTTP response that came from `agent`, seen by a proxy here."""
        self.plugins.response_seen(agent, status)

    # Reverse connections

    def _welcome(self, arrival: Arrival) -> None:
        preamble = arrival.preamble
        if isinstance(preamble, OldPreamble):
            wait = self._awaited.get(preamble.connection_id)
            session = wait.owner if wait is not None else None
        else:
            session = self._sessions_by_id.get(preamble.session_id)
        if session is None:
            if self._neighbours is not None and self._neighbours.welcome(arrival):
                return
            raise RemoteProtocolError("it belongs to no session or dial (any more)")
        session.welcome(arrival)


def _read_policy(path: Path) -> Policy:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"policy {path}: cannot read it: {error}") from error
    return parse_policy(text, str(path))


def _checked(message: control.Register) -> Registration:
    """The registration in normal form and within bounds, or `RegistrationError`."""
    try:
        if len(message.ports) > MAX_PORTS:
            raise ValueError(f"{len(message.ports)} ports, at most {MAX_PORTS}")
        return Registration(
            name=AgentName.parse(message.hostname, message.domain),
            ports=tuple(dict.fromkeys(map(check_port, message.ports))),
            labels=check_labels(message.labels),
            instance_id=message.instance_id,
            protocol_version=message.protocol_version,
            software_version=message.software_version,
        )
    except ValueError as error:
        raise RegistrationError(f"registration refused: {error}", code="invalid") from error
