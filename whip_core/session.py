"""An agent registered here: its control stream, its reverse connections, its streams."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from whip_core import control
from whip_core.agents import AgentView, Peer, Registration
from whip_core.control_state import BROKER_SIDE, ControlState, RoundTrips, State
from whip_core.errors import (
    AgentGone,
    RegistrationError,
    RemoteProtocolError,
    ServiceRefused,
)
from whip_core.framed import FramedConnection
from whip_core.frames import Role
from whip_core.names import AgentName
from whip_core.parking import MAX_PARKED, WINDOW, Demand
from whip_core.preamble import OldPreamble, Preamble
from whip_core.raw import RawConnection
from whip_core.reverse_listener import Arrival
from whip_core.sockets import peer_address
from whip_core.stream import Stream

logger = logging.getLogger(__name__)

SECRET_SIZE = 16
"""Octets of a session's id and of its secret: 128 random bits."""

PARKED_PATIENCE = 1.0
ROUND_TRIPS = 4
"""A parked connection has this many seconds, and round trips, to answer an OPEN: time for
the agent to reach its service, and little beside the time that a whole dial has."""

OnFinished = Callable[[Stream], None]


class Sender(Protocol):
    """What a session needs of its control stream."""

    peer: Peer

    def send(self, message: control.BrokerMessage) -> None: ...
    def end(self, why: RegistrationError | None = None) -> None: ...


@dataclass(slots=True)
class Wait:
    """A dial that waits for the reverse connection it asked for."""

    session: Session
    extra: Mapping[str, Any]
    on_finished: OnFinished
    connection: asyncio.Future[FramedConnection | RawConnection]


class Awaited:
    """The waiting dials by the id that their connection has to show.

    One table for a broker: an old agent's connection shows its id and nothing else.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Wait] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, connection_id: str, wait: Wait) -> None:
        self._by_id[connection_id] = wait

    def remove(self, connection_id: str) -> None:
        self._by_id.pop(connection_id, None)

    def get(self, connection_id: str) -> Wait | None:
        """None if nobody waits under that id, or not any more."""
        wait = self._by_id.get(connection_id)
        return wait if wait is not None and not wait.connection.done() else None

    def fail_all(self, session: Session, why: str) -> None:
        """The agent will not come: tell everyone who waits for it."""
        for wait in self._by_id.values():
            if wait.session is session and not wait.connection.done():
                wait.connection.set_exception(AgentGone(why))


class Session:
    """One registration of one agent, from its acceptance to the end of its control stream."""

    def __init__(
        self,
        sender: Sender,
        registration: Registration,
        reverse_address: tuple[str, int],
        awaited: Awaited,
    ) -> None:
        self.registration = registration
        self.peer = sender.peer
        self.session_id = secrets.token_hex(SECRET_SIZE)
        self.secret = secrets.token_hex(SECRET_SIZE)
        self.control = ControlState(BROKER_SIDE)
        self.round_trips = RoundTrips()
        self.streams = 0
        self.registered_at = time.time()
        self.heard_at = time.monotonic()
        self._sender = sender
        self._reverse_address = reverse_address
        self._awaited = awaited
        self._parked: deque[FramedConnection] = deque()
        self._opening: set[FramedConnection] = set()
        self._demand = Demand()
        self._window: asyncio.TimerHandle | None = None
        self._probe: asyncio.Future[None] | None = None
        self.next_ping: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Session {self.name} {self.control.state.value} streams={self.streams} "
            f"parked={len(self._parked)}>"
        )

    @property
    def name(self) -> AgentName:
        return self.registration.name

    @property
    def ports(self) -> tuple[int, ...]:
        return self.registration.ports

    @property
    def instance_id(self) -> str:
        return self.registration.instance_id

    @property
    def draining(self) -> bool:
        return self.control.state is State.DRAINING

    @property
    def speaks_frames(self) -> bool:
        return self.registration.protocol_version >= 1

    @property
    def parked(self) -> int:
        return len(self._parked)

    def view(self) -> AgentView:
        registration = self.registration
        return AgentView(
            name=registration.name,
            ports=registration.ports,
            labels=registration.labels,
            session_id=self.session_id,
            instance_id=registration.instance_id,
            address=self.peer.address,
            certificate_names=self.peer.certificate_names or (),
            protocol_version=registration.protocol_version,
            software_version=registration.software_version,
            streams=self.streams,
            parked=len(self._parked),
            round_trip=self.round_trips.latest,
            registered_at=self.registered_at,
            draining=self.draining,
        )

    # The control stream

    def send(self, message: control.BrokerMessage) -> None:
        self._sender.send(message)

    def received(self, message: control.AgentMessage) -> float | None:
        """Take a message in; the round trip in seconds if it completes one."""
        self.control.receive(message)
        self.heard_at = time.monotonic()
        if self._probe is not None and not self._probe.done():
            self._probe.set_result(None)
        match message:
            case control.Pong():
                return self.round_trips.pong(message, self.heard_at)
            case control.ConnectFailed(connection_id, why):
                wait = self._awaited.get(connection_id)
                if wait is not None and wait.session is self:
                    wait.connection.set_exception(ServiceRefused(why or "no reason given"))
            case control.Draining():
                self._close_parked()
        return None

    def ping(self) -> None:
        self.send(self.round_trips.ping(time.monotonic(), time.time_ns()))

    async def answers(self, timeout: float) -> bool:
        """Whether the agent says anything within `timeout` seconds of being pinged."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.get_running_loop().create_future()
        probe = self._probe  # of everybody who asks at the same time
        self.ping()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(probe)
        except TimeoutError:
            return False
        return self.control.state is not State.ENDED

    def end(self, why: RegistrationError | None) -> None:
        """End the session: no dial gets through any more; streams that run may finish."""
        self.control.end()
        if self._probe is not None and not self._probe.done():
            self._probe.set_result(None)
        self._awaited.fail_all(self, f"agent {self.name} vanished: {why or 'its session ended'}")
        self._close_parked()
        for connection in tuple(self._opening):
            connection.close()
        if self._window is not None:
            self._window.cancel()
        self._sender.end(why)

    def _close_parked(self) -> None:
        parked, self._parked = self._parked, deque()
        for connection in parked:
            connection.close()

    # Reverse connections

    def welcome(self, arrival: Arrival) -> None:
        """Take in a reverse connection of this agent; `RemoteProtocolError` refuses it.

        It must show the identity of the control stream and, from agents of ours, the
        session's secret. One that answers a dial goes to that dial and no other.
        """
        self._authenticate(arrival)
        connection_id = arrival.preamble.connection_id
        if isinstance(arrival.preamble, Preamble) and not connection_id:
            connection = self._framed()
            arrival.adopt(connection)
            self.park(connection)
            return
        wait = self._awaited.get(connection_id)
        if wait is None or wait.session is not self:
            raise RemoteProtocolError(f"nobody waits for this connection of {self.name} (any more)")
        answer: FramedConnection | RawConnection
        if isinstance(arrival.preamble, Preamble):
            answer = self._framed()
        else:
            extra = {**wait.extra, "peername": arrival.address}
            answer = RawConnection(connection_id, extra=extra, on_finished=wait.on_finished)
        arrival.adopt(answer)
        wait.connection.set_result(answer)

    def _authenticate(self, arrival: Arrival) -> None:
        if self.control.state is State.ENDED:
            raise RemoteProtocolError(f"the session of {self.name} has ended")
        if _identity(arrival.certificate_names) != _identity(self.peer.certificate_names):
            raise RemoteProtocolError(
                f"a reverse connection for {self.name} with another certificate's names"
            )
        preamble = arrival.preamble
        if isinstance(preamble, OldPreamble):
            if self.speaks_frames:
                raise RemoteProtocolError(f"{self.name} does not speak the old protocol")
        elif not hmac.compare_digest(preamble.secret.encode(), self.secret.encode()):
            raise RemoteProtocolError(f"a reverse connection for {self.name} with a wrong secret")

    def _framed(self) -> FramedConnection:
        return FramedConnection(Role.OPENER, on_idle=self.park, on_lost=self.unpark)

    def park(self, connection: FramedConnection) -> None:
        """Keep an idle connection for the next dial, or close it where there are enough."""
        if self.control.state is State.REGISTERED and len(self._parked) < MAX_PARKED:
            self._parked.append(connection)
            if len(self._parked) > self._demand.target:
                self._watch_demand()
        else:
            connection.close()

    def unpark(self, connection: FramedConnection) -> None:
        """Forget a connection that is gone."""
        if connection in self._parked:
            self._parked.remove(connection)

    async def open(
        self,
        port: int,
        dial_id: bytes,
        *,
        extra: Mapping[str, Any],
        on_finished: OnFinished,
    ) -> tuple[Stream, bool]:
        """Open a stream to the agent's exposed `port`; also whether a parked connection served.

        Raises `DialError`s without a target's name. Cancelled, it leaves nothing behind.
        """
        while self._parked:
            connection = self._parked.pop()
            if not connection.is_parked:
                continue
            self._demand.used(len(self._parked))
            try:
                async with asyncio.timeout(self._parked_patience()):
                    stream = await self._open_on(connection, port, dial_id, extra, on_finished)
            except AgentGone as error:
                logger.debug("%r was dead: %s", connection, error)
                continue
            except TimeoutError:
                logger.debug("%r does not answer: its path may be dead", connection)
                break
            return stream, True
        self._missed()
        return await self._open_new(port, dial_id, extra, on_finished), False

    def _parked_patience(self) -> float:
        """Seconds after which a parked connection is given up, and a new one asked for."""
        return PARKED_PATIENCE + ROUND_TRIPS * (self.round_trips.latest or 0.0)

    # How many to keep parked

    def start_parking(self) -> None:
        """Tell a newly registered agent how many connections to keep parked."""
        if self.speaks_frames:
            self.send(control.Park(self._demand.target))

    def _missed(self) -> None:
        if self.speaks_frames:
            if self._demand.missed():
                self.send(control.Park(self._demand.target))
            self._watch_demand()

    def _watch_demand(self) -> None:
        if self._window is None and self.control.state is State.REGISTERED:
            loop = asyncio.get_running_loop()
            self._window = loop.call_later(WINDOW, self._window_passed)

    def _window_passed(self) -> None:
        self._window = None
        before = self._demand.target
        adjustment = self._demand.window_passed(len(self._parked))
        if adjustment.target != before:
            self.send(control.Park(adjustment.target))
        for _ in range(adjustment.surplus):
            # The ones that have been idle longest; the next dial takes the other end.
            self._parked.popleft().close()
        if not self._demand.at_rest or len(self._parked) > self._demand.target:
            self._watch_demand()

    async def _open_new(
        self, port: int, dial_id: bytes, extra: Mapping[str, Any], on_finished: OnFinished
    ) -> Stream:
        if self.control.state is State.ENDED:
            raise AgentGone(f"agent {self.name} vanished")
        connection_id = dial_id.hex()
        answer: asyncio.Future[FramedConnection | RawConnection] = (
            asyncio.get_running_loop().create_future()
        )
        self._awaited.add(connection_id, Wait(self, extra, on_finished, answer))
        try:
            host, reverse_port = self._reverse_address
            self.send(control.Connect(connection_id, host, reverse_port, port))
            connection = await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()
            raise
        finally:
            self._awaited.remove(connection_id)
        if isinstance(connection, RawConnection):
            return connection.stream
        return await self._open_on(connection, port, dial_id, extra, on_finished)

    async def _open_on(
        self,
        connection: FramedConnection,
        port: int,
        dial_id: bytes,
        extra: Mapping[str, Any],
        on_finished: OnFinished,
    ) -> Stream:
        extra = {**extra, "peername": peer_address(connection.transport)}
        self._opening.add(connection)
        try:
            return await connection.open(port, dial_id, extra=extra, on_finished=on_finished)
        finally:
            self._opening.discard(connection)


def _identity(names: tuple[str, ...] | None) -> frozenset[str] | None:
    """What has to be the same on both connections: a renewed certificate's names are."""
    return frozenset(names) if names is not None else None
