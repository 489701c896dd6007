"""One registration of an agent: its control stream, and how dials get through to it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, Protocol

from whip_core import control
from whip_core.agents import AgentView, Peer, Registration
from whip_core.awaited import Awaited, OnFinished, Wait
from whip_core.control_state import BROKER_SIDE, ControlState, RoundTrips, State
from whip_core.errors import (
    AgentGone,
    RegistrationError,
    RemoteProtocolError,
    ServiceRefused,
)
from whip_core.framed import FramedConnection, Opening
from whip_core.frames import Side
from whip_core.names import AgentName
from whip_core.parked_pool import ParkedPool
from whip_core.preamble import OldPreamble, Preamble
from whip_core.raw import RawConnection
from whip_core.reverse_listener import Arrival
from whip_core.stream import Stream

logger = logging.getLogger(__name__)

SECRET_SIZE = 16
"""Octets of a session's id and of its secret: 128 random bits."""

PARKED_PATIENCE = 1.0
ROUND_TRIPS = 4
"""A parked connection has this many seconds, and round trips, to answer an OPEN: time for
the agent to reach its service, and little beside the time that a whole dial has."""


class Sender(Protocol):
    """What a session needs of its control stream."""

    peer: Peer

    def send(self, message: control.BrokerMessage) -> None: ...
    def end(self, why: RegistrationError | None = None) -> None: ...


class Session:
    """One registration of one agent, from its acceptance to the end of its control stream."""

    def __init__(
        self,
        sender: Sender,
        registration: Registration,
        reverse_address: tuple[str, int],
        awaited: Awaited[Session],
    ) -> None:
        self.registration = registration
        self.peer = sender.peer
        self.session_id = secrets.token_hex(SECRET_SIZE)
        self.secret = secrets.token_hex(SECRET_SIZE)
        self.control = ControlState(BROKER_SIDE)
        self.round_trips = RoundTrips()
        self.streams = 0
        self.ejected = False
        self.readmission: asyncio.TimerHandle | None = None
        self.registered_at = time.time()
        self.heard_at = time.monotonic()
        self._unanswered_since: float | None = None
        self._sender = sender
        self._reverse_address = reverse_address
        self._awaited = awaited
        self.pool = ParkedPool(lambda target: self.send(control.Park(target)))
        self._opening: set[FramedConnection] = set()
        self._probe: asyncio.Future[None] | None = None
        self._view: AgentView | None = None
        self.next_ping: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Session {self.name} {self.control.state.value} streams={self.streams} "
            f"parked={len(self.pool)}>"
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
    def ended(self) -> bool:
        return self.control.state is State.ENDED

    @property
    def speaks_frames(self) -> bool:
        return self.registration.protocol_version >= 1

    @property
    def parked(self) -> int:
        return len(self.pool)

    def view(self) -> AgentView:
        """What plugins see; the same object until something in it changes."""
        view = self._view
        if (
            view is None
            or view.streams != self.streams
            or view.parked != len(self.pool)
            or view.round_trip != self.round_trips.latest
            or view.draining is not (self.control.state is State.DRAINING)
            or view.ejected != self.ejected
        ):
            view = self._view = self._new_view()
        return view

    def _new_view(self) -> AgentView:
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
            parked=len(self.pool),
            round_trip=self.round_trips.latest,
            registered_at=self.registered_at,
            draining=self.draining,
            ejected=self.ejected,
        )

    # The control stream

    def send(self, message: control.BrokerMessage) -> None:
        self._sender.send(message)

    def received(self, message: control.AgentMessage) -> float | None:
        """Take a message in; the round trip in seconds if it completes one."""
        self.control.receive(message)
        self.heard_at = time.monotonic()
        self._unanswered_since = None
        if self._probe is not None and not self._probe.done():
            self._probe.set_result(None)
        match message:
            case control.Pong():
                return self.round_trips.pong(message, self.heard_at)
            case control.ConnectFailed(connection_id, why):
                wait = self._awaited.get(connection_id)
                if wait is not None and wait.owner is self:
                    wait.connection.set_exception(ServiceRefused(why or "no reason given"))
            case control.Draining():
                self.pool.close()
        return None

    def ping(self) -> None:
        now = time.monotonic()
        if self._unanswered_since is None:
            self._unanswered_since = now
        self.send(self.round_trips.ping(now, time.time_ns()))

    @property
    def silent_for(self) -> float:
        """Seconds since the first ping behind which nothing has come; 0 if there is none."""
        if self._unanswered_since is None:
            return 0.0
        return time.monotonic() - self._unanswered_since

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
        reason = f"agent {self.name} vanished: {why or 'its session ended'}"
        self._awaited.fail_all(self, lambda: AgentGone(reason))
        self.pool.close()
        for connection in tuple(self._opening):
            connection.close()
        self._sender.end(why)

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
            self.pool.park(connection)
            return
        wait = self._awaited.get(connection_id)
        if wait is None or wait.owner is not self:
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
        return FramedConnection(Side.OPENER, on_idle=self.pool.park, on_lost=self.pool.forget)

    async def open(
        self,
        port: int,
        dial_id: bytes,
        *,
        timeout: float,
        extra: Mapping[str, Any],
        on_finished: OnFinished,
        after: Exception | None = None,
    ) -> tuple[Stream, bool]:
        """Open a stream to the agent's exposed `port`; also whether a parked connection served.

        `after` is what came of an `ask_parked`, if that was tried already. Raises
        `TimeoutError` after `timeout` seconds, and `DialError`s without a target's name.
        Cancelled, it leaves nothing behind.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + timeout
        if after is not None and not isinstance(after, (AgentGone, TimeoutError)):
            raise after
        while not isinstance(after, TimeoutError) and (connection := self.pool.take()) is not None:
            try:
                async with asyncio.timeout_at(min(deadline, now() + self.parked_patience())):
                    stream = await self._open_on(connection, port, dial_id, extra, on_finished)
            except AgentGone as error:
                logger.debug("%r was dead: %s", connection, error)
                continue
            except TimeoutError:
                logger.debug("%r does not answer: its path may be dead", connection)
                break
            return stream, True
        self.pool.missed()
        async with asyncio.timeout_at(deadline):
            return await self._open_new(port, dial_id, extra, on_finished), False

    def parked_patience(self) -> float:
        """Seconds after which a parked connection is given up, and a new one asked for."""
        return PARKED_PATIENCE + ROUND_TRIPS * (self.round_trips.latest or 0.0)

    def ask_parked(
        self,
        opening: Opening,
        port: int,
        dial_id: bytes,
        *,
        extra: dict[str, Any],
        on_finished: OnFinished,
    ) -> FramedConnection | None:
        """Ask for a stream on a parked connection; it, or None if there is none.

        `opening` is told the answer. The caller says `answered` then, and when it gives up.
        """
        connection = self.pool.take()
        if connection is not None:
            extra["peername"] = connection.peer_address
            self._opening.add(connection)
            connection.start(opening, port, dial_id, extra=extra, on_finished=on_finished)
        return connection

    def answered(self, connection: FramedConnection) -> None:
        """Nobody waits for its answer any more."""
        self._opening.discard(connection)

    async def _open_new(
        self, port: int, dial_id: bytes, extra: Mapping[str, Any], on_finished: OnFinished
    ) -> Stream:
        connection = await self._connection(port, dial_id, extra, on_finished)
        if isinstance(connection, RawConnection):
            return connection.stream
        return await self._open_on(connection, port, dial_id, extra, on_finished)

    async def _connection(
        self, port: int, dial_id: bytes, extra: Mapping[str, Any], on_finished: OnFinished
    ) -> FramedConnection | RawConnection:
        """A new reverse connection, which the agent is asked for."""
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
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()
            raise
        finally:
            self._awaited.remove(connection_id)

    async def _open_on(
        self,
        connection: FramedConnection,
        port: int,
        dial_id: bytes,
        extra: Mapping[str, Any],
        on_finished: OnFinished,
    ) -> Stream:
        extra = {**extra, "peername": connection.peer_address}
        self._opening.add(connection)
        try:
            return await connection.open(port, dial_id, extra=extra, on_finished=on_finished)
        finally:
            self._opening.discard(connection)


def _identity(names: tuple[str, ...] | None) -> frozenset[str] | None:
    """What has to be the same on both connections: a renewed certificate's names are."""
    return frozenset(names) if names is not None else None
