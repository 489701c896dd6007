"""The registrar: lets agents in, watches over their sessions, and ends them.

It answers the control server (`control_stream.ControlHandler`) and hands each reverse
connection to the session that it belongs to. A session is entered once and ended once,
whoever ends it: its agent, silence, another that takes the name, the operator.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version

from whip_core import control
from whip_core.admission import Admission
from whip_core.agents import AgentView, Peer, Refusal, Registration
from whip_core.awaited import Awaited
from whip_core.control_stream import ControlStream
from whip_core.credentials import Credentials
from whip_core.errors import RegistrationError, RemoteProtocolError, UnknownName
from whip_core.names import AgentName, check_labels, check_port, normalize
from whip_core.neighbours import Neighbours
from whip_core.plugins import Plugins
from whip_core.preamble import OldPreamble
from whip_core.rare_log import RareLog
from whip_core.registry import Contested, Joined, Registry
from whip_core.reverse_listener import Arrival
from whip_core.session import Session
from whip_core.settings import BrokerSettings

logger = logging.getLogger(__name__)

MAX_PORTS = 1024
"""Ports one agent may expose: far above any service, far below what would hurt to keep."""


class Registrar:
    """One broker's agents: their sessions, by name and by id.

    `credentials` and `neighbours` are given when the broker is entered, if it has any.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        broker_id: str,
        plugins: Plugins,
        admission: Admission,
        reverse_address: Callable[[], tuple[str, int]],
        stopping: asyncio.Event,
    ) -> None:
        """Once `stopping` is set, no agent is let in any more."""
        self.registry: Registry[Session] = Registry()
        self.awaited: Awaited[Session] = Awaited()
        self.sessions: dict[str, Session] = {}
        """By their ids, guests of other brokers among them."""
        self.credentials: Credentials | None = None
        self.neighbours: Neighbours | None = None
        self.on_joined: Callable[[], None] = lambda: None
        self.on_draining: Callable[[str], None] = lambda name: None
        self.on_readmitted: Callable[[AgentView], None] = lambda agent: None
        self._stopping = stopping
        self._settings = settings
        self._broker_id = broker_id
        self._plugins = plugins
        self._admission = admission
        self._reverse_address = reverse_address
        self._refusals = RareLog(logger)

    # Control streams

    async def register(self, stream: ControlStream, message: control.Register) -> Session:
        registration = _checked(message)
        if self._stopping.is_set():
            raise RegistrationError("the broker is stopping", code="closing")
        if self._broker_id in message.held_brokers:
            held = self.registry.get(registration.name.full)
            if held is not None and held.instance_id == registration.instance_id:
                stream.send(control.AlreadyRegistered(self._broker_id))
                raise RegistrationError(
                    "you are registered here by another address", code="already-registered"
                )
        if (problem := self._certificate_problem(stream.peer)) is not None:
            raise RegistrationError(f"{registration.name} refused: {problem}", code="certificate")
        veto = await self._plugins.veto_of_agent(registration, stream.peer)
        if veto is not None:
            raise RegistrationError(f"{registration.name} refused: {veto}", code="not-authorized")
        if self.registry.get(registration.name.full) is None:
            self._admission.check_agent(stream.peer)
        session = Session(stream, registration, self._reverse_address(), self.awaited)
        joined = await self._enter(session)
        if joined.replaced is not None:
            self.end(
                joined.replaced,
                RegistrationError("replaced by a newer session", code="replaced"),
            )
        self._joined(session, message)
        return session

    async def _enter(self, session: Session) -> Joined[Session]:
        """Enter a session; who holds the name, and does not answer a probe, loses it."""
        while True:
            outcome = self.registry.register(session)
            if isinstance(outcome, Joined):
                return outcome
            holder = outcome.holder
            if await holder.answers(self._settings.probe_timeout):
                raise self._taken(session, outcome)
            if self.registry.get(session.name.full) is holder:
                logger.warning("agent %s does not answer: its name is taken over", holder.name)
                self._plugins.name_taken_over(holder.view(), session.view())
                return self.registry.take_over(session)

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
        self.sessions[session.session_id] = session
        if session.speaks_frames:
            host, port = self._reverse_address()
            session.send(
                control.Registered(
                    protocol_version=control.PROTOCOL_VERSION,
                    broker_id=self._broker_id,
                    session_id=session.session_id,
                    secret=session.secret,
                    reverse_host=host,
                    reverse_port=port,
                    software_version=version("whip-tunnel"),
                    cluster=self.neighbours.cluster if self.neighbours else "",
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
        self._ping_later(session, random.uniform(0, self._settings.ping_interval))  # noqa: S311
        self._plugins.agent_joined(session.view())
        if self.neighbours is not None:
            self.neighbours.holder.joined(session)
        self.on_joined()

    def _ping_later(self, session: Session, delay: float) -> None:
        loop = asyncio.get_running_loop()
        session.next_ping = loop.call_later(delay, self._ping, session)

    def _ping(self, session: Session) -> None:
        silent = session.silent_for
        if silent >= self._settings.ping_timeout:
            # Whatever TCP believes of it, the path is dead, or the agent.
            why = f"it has not answered for {silent:.0f} s"
            self.end(session, RegistrationError(why, code="unresponsive"))
            return
        session.ping()
        self._ping_later(session, self._settings.ping_interval)

    def received(self, session: Session, message: control.AgentMessage) -> None:
        was_draining = session.draining
        round_trip = session.received(message)
        if session.draining != was_draining:
            self.registry.standing_changed(session)
            self.on_draining(session.name.full)
        if round_trip is not None:
            self._plugins.round_trip(session.view(), round_trip)
        if self.neighbours is not None:
            match message:
                case control.ConnectFailed(connection_id, why):
                    self.neighbours.holder.connect_failed(connection_id, why)
                case control.Draining():
                    self.neighbours.holder.draining(session)

    def left(self, session: Session, reason: str) -> None:
        self.end(session, None, reason)

    def _certificate_problem(self, peer: Peer) -> str | None:
        return self.credentials.problem(peer.certificate) if self.credentials else None

    def end_unbelieved(self) -> None:
        """End the sessions whose certificate has expired or was revoked meanwhile."""
        for session in self.registry:
            if (problem := self._certificate_problem(session.peer)) is not None:
                logger.warning("the session of agent %s is ended: %s", session.name, problem)
                self.end(session, RegistrationError(problem, code="certificate"))

    def refused(self, peer: Peer, name: str, why: RegistrationError) -> None:
        if why.code == "already-registered":
            return
        self._refusals.warning("refused agent %s from %s: %s", name, peer.address[0], why)
        self._plugins.refused(Refusal("agent", why.code, peer.address, str(why), name))

    def connection_refused(self, address: tuple[str, int], reason: str, text: str) -> None:
        self._plugins.refused(Refusal("connection", reason, address, text))

    def end(
        self, session: Session, why: RegistrationError | None, reason: str | None = None
    ) -> None:
        """End a session, once, and forget it; a newer one of its name stays."""
        if self.sessions.pop(session.session_id, None) is None:
            return
        reason = reason or str(why)
        self.registry.remove(session)
        if self.neighbours is not None:
            self.neighbours.holder.left(session)
        self._admission.agent_left(session.peer)
        for timer in (session.next_ping, session.readmission):
            if timer is not None:
                timer.cancel()
        view = session.view()
        session.end(why)
        logger.info("agent %s left: %s", session.name, reason)
        self._plugins.agent_left(view, reason)

    def end_all(self, why: RegistrationError) -> None:
        for session in self.registry:
            self.end(session, why)

    def say_draining(self, why: str) -> None:
        """Tell all agents, and the other brokers, that the broker takes none any more."""
        if self.neighbours is not None:
            self.neighbours.holder.drain()
        for session in self.registry:
            if session.speaks_frames:
                session.send(control.Draining(why))

    def kick(self, name: str) -> None:
        """End an agent's session. Raises `UnknownName` if nobody has the name."""
        try:
            session = self.registry.get(normalize(name))
        except ValueError as error:
            raise UnknownName(str(error)) from error
        if session is None:
            raise UnknownName(f"no agent is registered as {normalize(name)}")
        self.end(session, RegistrationError("ended by the operator", code="kicked"))

    # Counts, by domain

    def parked(self) -> dict[str, int]:
        """Parked connections."""
        parked: Counter[str] = Counter()
        for session in self.registry:
            parked[session.name.domain] += session.parked
        return parked

    def ejected(self) -> dict[str, int]:
        """Agents that are left out for a while."""
        return Counter(session.name.domain for session in self.registry if session.ejected)

    # Ejection: what `OutlierEjection` decides

    def eject(self, agent: AgentView, seconds: float) -> None:
        session = self.sessions.get(agent.session_id)
        if session is None:
            return
        session.ejected = True
        self.registry.standing_changed(session)
        loop = asyncio.get_running_loop()
        session.readmission = loop.call_later(seconds, self._readmit, session)

    def _readmit(self, session: Session) -> None:
        session.ejected = False
        self.registry.standing_changed(session)
        self.on_readmitted(session.view())

    # Reverse connections

    def welcome(self, arrival: Arrival) -> None:
        preamble = arrival.preamble
        if isinstance(preamble, OldPreamble):
            wait = self.awaited.get(preamble.connection_id)
            session = wait.owner if wait is not None else None
        else:
            session = self.sessions.get(preamble.session_id)
        if session is None:
            if self.neighbours is not None and self.neighbours.welcome(arrival):
                return
            raise RemoteProtocolError("it belongs to no session or dial (any more)")
        session.welcome(arrival)


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
