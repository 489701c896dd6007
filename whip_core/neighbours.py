"""Agents that other brokers hold: found over a fabric, and reached without a hop.

A name that nobody has registered here is sought. The broker that holds its agent tells it to
open reverse connections straight to us, where it is a *guest*: a session like any other, but
for its control stream, whose messages travel by way of that broker. What it parked here
serves the next dial in one round trip, and needs no fabric.

Both brokers' policies are asked for each dial: ours like for any agent, the holder's before
its agent is told anything and, if it has plugins that judge dials, before one is served by a
connection that is parked here.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any

from whip_core import control
from whip_core.agents import AgentView, Peer, Registration
from whip_core.awaited import Awaited, OnFinished
from whip_core.caller import Caller
from whip_core.candidates import Candidates, exposed_port
from whip_core.dial_wire import (
    decode_agent,
    decode_caller,
    encode_agent,
    encode_caller,
    failure,
    failure_code,
)
from whip_core.dialer import Dial
from whip_core.errors import (
    AgentGone,
    DialError,
    NotAuthorized,
    PortNotExposed,
    RegistrationError,
    RemoteProtocolError,
    SettingsError,
)
from whip_core.fabric import MAX_MESSAGE, Fabric, FabricError
from whip_core.fabric_wire import Gate, Message, Unwelcome, number, text
from whip_core.names import Target, check_port
from whip_core.plugins import Plugins
from whip_core.registry import Registry
from whip_core.session import Session
from whip_core.stream import Stream
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

ASK_TIMEOUT = 2.0
"""Seconds for a question to the fabric: many times what it takes when all is well, and a
fraction of a dial's time when a broker has just died."""
ANOTHER_TIMEOUT = 0.5
"""Seconds for another broker's offer when the first came to nothing: it may be the only one."""
MAX_OFFERS = 16
"""Agents of a domain that one answer offers: enough to pick among, and it stays short."""
MAX_GUESTS = 20_000
"""Agents of others that are kept at once; a guest costs as much as an agent of our own."""
GUEST_LIFE = 300.0
"""Seconds after its last dial that a guest is let go: its parked connection is worth that."""
SWEEP_INTERVAL = 30.0
COMPLAINT_INTERVAL = 60.0
"""Seconds between two log lines about messages that were dropped."""
MAX_VISITS = 65_536
"""Dials of others that may yet fail, for whom to tell; the oldest are forgotten."""


class Guest(Session):
    """An agent that another broker holds, as far as it has connections here."""

    def __init__(
        self,
        neighbours: Neighbours,
        holder: str,
        view: AgentView,
        plain: bool,
        reverse_address: tuple[str, int],
        awaited: Awaited[Session],
    ) -> None:
        self.holder = holder
        self.offered = view
        self.used_at = time.monotonic()
        self.holder_judges = True
        self._neighbours = neighbours
        registration = Registration(
            name=view.name,
            ports=view.ports,
            labels=view.labels,
            instance_id=view.instance_id,
            protocol_version=view.protocol_version,
            software_version=view.software_version,
        )
        peer = Peer(view.address, None if plain else view.certificate_names)
        super().__init__(
            _ByWayOfHolder(neighbours, self, peer), registration, reverse_address, awaited
        )
        self.control.receive(control.Register(view.name.hostname, view.name.domain, view.ports))
        self.round_trips.latest = view.round_trip
        self.target_parked = 0
        self.invited = False
        self.pool.start()

    def view(self) -> AgentView:
        """What the holder said of its load comes on top of our own streams."""
        mine = super().view()
        return dataclasses.replace(mine, streams=mine.streams + self.offered.streams)

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
        self.used_at = time.monotonic()
        if self.holder_judges and self.parked:
            async with asyncio.timeout(timeout):
                await self._neighbours.ask_leave(self, extra["whip"])
        return await super().open(
            port, dial_id, timeout=timeout, extra=extra, on_finished=on_finished, after=after
        )


class _ByWayOfHolder:
    """A guest's control stream."""

    def __init__(self, neighbours: Neighbours, guest: Guest, peer: Peer) -> None:
        self._neighbours = neighbours
        self._guest = guest
        self.peer = peer

    def send(self, message: control.BrokerMessage) -> None:
        match message:
            case control.Park(connections):
                self._guest.target_parked = connections
                if self._guest.invited:  # else the first dial's invitation says it
                    self._neighbours.invite(self._guest, None)
            case control.Connect():
                self._guest.invited = True
                self._neighbours.invite(self._guest, message)
            case _:
                pass  # pings: its own broker measures it

    def end(self, why: RegistrationError | None = None) -> None:
        self._guest.target_parked = 0
        if self._guest.invited:
            self._neighbours.invite(self._guest, None)


class Neighbours:
    """One broker's side of the fabric. An async context manager."""

    def __init__(
        self,
        fabric: Fabric,
        cluster: str,
        broker_id: str,
        reverse_address: Callable[[], tuple[str, int]],
        sessions: dict[str, Session],
        registry: Registry[Session],
        awaited: Awaited[Session],
        plugins: Plugins,
        dropped: Callable[[str], None],
    ) -> None:
        """`sessions` are the broker's by their id, where guests are entered too; `dropped`
        is told the reason for which a message was not let in."""
        self._fabric = fabric
        self._broker_id = broker_id
        self._reverse_address = reverse_address
        self._sessions = sessions
        self._registry = registry
        self._awaited = awaited
        self._plugins = plugins
        self._tell_dropped = dropped
        self._gate = Gate(cluster, broker_id)
        self._guests: dict[tuple[str, str], Guest] = {}
        self._by_name: dict[str, Guest] = {}
        self._visits: dict[str, str] = {}
        self._invited: dict[tuple[str, str], None] = {}
        self._domains: collections.Counter[str] = collections.Counter()
        self._dropped: collections.Counter[str] = collections.Counter()
        self._complained_at = float("-inf")
        self._tasks = TaskSet()
        self.cluster = cluster

    async def __aenter__(self) -> Neighbours:
        try:
            await self._fabric.open(self._answer)
            await self._check_alone()
        except BaseException:
            await self._fabric.close()
            raise
        self._fabric.hold(_broker(self._broker_id), shared=False)
        self._tasks.spawn(self._sweep(), "guests")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # First of all: no broker shall count on us any more.
        await self._fabric.close()
        await self._tasks.cancel_all()
        for guest in tuple(self._guests.values()):
            self._sessions.pop(guest.session_id, None)
            guest.end(None)
        self._guests.clear()
        self._by_name.clear()

    async def _check_alone(self) -> None:
        """Raises `SettingsError` if another broker has our id."""
        hello = self._gate.seal("hello", time.time())
        try:
            async with aclosing(
                self._fabric.ask(_broker(self._broker_id), hello, ASK_TIMEOUT)
            ) as answers:
                async for _ in answers:
                    raise SettingsError(
                        f"another broker of the cluster {self.cluster} has our id "
                        f"{self._broker_id}: each must have its own"
                    )
        except FabricError as error:
            logger.warning("the fabric is not there yet: %s", error)

    # Our agents

    def draining(self, session: Session) -> None:
        """It takes no new dials: nobody shall be offered it."""
        if self._registry.get(session.name.full) is session:
            self._fabric.release(_agent(session.name.full))

    def drain(self) -> None:
        """Offer none of our agents any more; those that others reach already go on."""
        for session in self._registry:
            self._fabric.release(_agent(session.name.full))
        for domain in self._domains:
            self._fabric.release(_domain(domain))

    def joined(self, session: Session) -> None:
        name = session.name
        self._fabric.hold(_agent(name.full), shared=False)
        self._domains[name.domain] += 1
        if self._domains[name.domain] == 1:
            self._fabric.hold(_domain(name.domain), shared=True)

    def left(self, session: Session) -> None:
        """The session has ended; another may hold its name already."""
        name = session.name
        if self._registry.get(name.full) is None:
            self._fabric.release(_agent(name.full))
        self._domains[name.domain] -= 1
        if not self._domains[name.domain]:
            del self._domains[name.domain]
            self._fabric.release(_domain(name.domain))

    def connect_failed(self, connection_id: str, why: str) -> None:
        """An agent of ours could not do what it was told for another broker."""
        broker = self._visits.pop(connection_id, None)
        if broker is not None:
            message = self._gate.seal("failed", time.time(), connection=connection_id, why=why)
            self._tasks.spawn(self._tell(broker, message), "tell of a failure")

    # Dialling

    async def find(
        self, target: Target, caller: Caller, tried: Collection[Session]
    ) -> Candidates[Session] | None:
        """Agents of other brokers that may serve `target`, without those `tried`.

        None if there is none. Raises `PortNotExposed` if there are, and none exposes it.
        """
        known = self._by_name.get(target.name)
        if (
            known is not None
            and known.parked
            and known not in tried
            and exposed_port(known.ports, target.port) is not None
        ):
            return Candidates[Session]([known], target.port)
        for key in (_agent(target.name), _domain(target.name)):
            guests = await self._seek(key, target, tried)
            if not guests:
                continue
            serving = [guest for guest in guests if exposed_port(guest.ports, target.port)]
            if not serving:
                exposed = sorted({port for guest in guests for port in guest.ports})
                raise PortNotExposed(
                    f"{target}: the agent does not expose port {target.port} "
                    f"(exposed: {', '.join(map(str, exposed[:8])) or 'none'})"
                )
            return Candidates[Session](serving, target.port)
        return None

    async def _seek(self, key: str, target: Target, tried: Collection[Session]) -> list[Guest]:
        """The first answer with somebody who has not been tried."""
        question = self._gate.seal("seek", time.time(), name=target.name, port=target.port)
        timeout = ANOTHER_TIMEOUT if tried else ASK_TIMEOUT
        try:
            async with aclosing(self._fabric.ask(key, question, timeout)) as answers:
                async for data in answers:
                    message = self._admit(data)
                    if message is None or message.kind != "offers":
                        continue
                    if message.sender == self._broker_id:
                        continue
                    try:
                        guests = self._offered(message)
                    except RemoteProtocolError as error:
                        self._drop(Unwelcome("malformed", str(error)))
                        continue
                    if guests := [guest for guest in guests if guest not in tried]:
                        return guests
        except FabricError as error:
            logger.info("%s is not registered here, and others cannot be asked: %s", target, error)
        return []

    def _offered(self, message: Message) -> list[Guest]:
        offers = message.body.get("offers")
        if not isinstance(offers, list) or len(offers) > MAX_OFFERS:
            raise RemoteProtocolError("its offers are no list, or too many")
        guests = []
        for offer in offers:
            if not isinstance(offer, dict):
                raise RemoteProtocolError("an offer that is no JSON object")
            view = decode_agent(offer.get("agent"))
            try:
                for port in view.ports:
                    check_port(port)
            except ValueError as error:
                raise RemoteProtocolError(str(error)) from error
            guest = self._guest(message.sender, view, bool(offer.get("plain")))
            guest.holder_judges = bool(message.body.get("judges", True))
            guests.append(guest)
        return guests

    def _guest(self, holder: str, view: AgentView, plain: bool) -> Guest:
        key = (holder, view.session_id)
        guest = self._guests.get(key)
        if guest is None:
            if len(self._guests) >= MAX_GUESTS:
                self._let_go(min(self._guests.values(), key=lambda guest: guest.used_at))
            address = self._reverse_address()
            guest = Guest(self, holder, view, plain, address, self._awaited)
            self._guests[key] = guest
            self._sessions[guest.session_id] = guest
        guest.offered = view
        guest.round_trips.latest = view.round_trip
        self._by_name[view.name.full] = guest
        return guest

    def invite(self, guest: Guest, dial: control.Connect | None) -> None:
        """Have the guest's broker tell it what we want of it."""
        self._tasks.spawn(self._invite(guest, dial), f"invite {guest.name}")

    async def _invite(self, guest: Guest, dial: control.Connect | None) -> None:
        host, port = self._reverse_address()
        body: dict[str, Any] = {
            "session": guest.offered.session_id,
            "guest": guest.session_id,
            "secret": guest.secret,
            "host": host,
            "port": port,
            "connections": guest.target_parked,
        }
        if dial is not None:
            wait = self._awaited.get(dial.connection_id)
            if wait is None:
                return  # it was given up
            body |= _of_dial(wait.extra["whip"])
            body |= {"dial": dial.connection_id, "local_port": dial.local_port}
        message = self._gate.seal("visit", time.time(), **body)
        try:
            error = await self._request(guest.holder, message, "visiting")
        except FabricError as problem:
            error = AgentGone(f"the broker that holds agent {guest.name}: {problem}")
        if error is not None and dial is not None:
            self._fail(dial.connection_id, error)

    async def ask_leave(self, guest: Guest, dial: Dial) -> None:
        """Ask the holder whether a parked connection may serve the dial. Raises `DialError`."""
        question = self._gate.seal(
            "allow", time.time(), session=guest.offered.session_id, **_of_dial(dial)
        )
        try:
            error = await self._request(guest.holder, question, "allowed")
        except FabricError as problem:
            error = AgentGone(f"the broker that judges dials to {guest.name}: {problem}")
        if error is not None:
            raise error

    async def _request(self, holder: str, message: bytes, granted: str) -> DialError | None:
        """Ask a broker for something; None if it is granted."""
        async with aclosing(self._fabric.ask(_broker(holder), message, ASK_TIMEOUT)) as answers:
            async for data in answers:
                answer = self._admit(data)
                if answer is None or answer.sender != holder:
                    continue
                if answer.kind == granted:
                    return None
                if answer.kind == "refused":
                    try:
                        return failure(number(answer.body, "code"), text(answer.body, "why"))
                    except RemoteProtocolError as error:
                        self._drop(Unwelcome("malformed", str(error)))
        return AgentGone(f"the broker {holder}, which holds it, does not answer")

    def _fail(self, connection_id: str, error: DialError) -> None:
        wait = self._awaited.get(connection_id)
        if wait is not None and isinstance(wait.owner, Guest):
            wait.connection.set_exception(error)

    # What others ask

    async def _answer(self, data: bytes) -> bytes | None:
        message = self._admit(data)
        if message is None:
            return None
        try:
            match message.kind:
                case "seek":
                    return self._offer(message)
                case "visit":
                    return await self._visited(message)
                case "allow":
                    error = await self._judge(message)
                    if error is not None:
                        return self._refuse(error)
                    return self._gate.seal("allowed", time.time())
                case "failed":
                    self._failed(message)
                case "hello":
                    if message.sender == self._broker_id:
                        logger.error("another broker with our id %s was refused", message.sender)
                    return self._gate.seal("hello", time.time())
                case _:
                    raise RemoteProtocolError(f"its kind {message.kind[:40]!r} is unknown")
        except (RemoteProtocolError, ValueError) as error:
            self._drop(Unwelcome("malformed", str(error)))
        except Exception:
            logger.exception("a message of the broker %s failed", message.sender)
        return None

    def _offer(self, message: Message) -> bytes | None:
        target = Target.parse(text(message.body, "name"), number(message.body, "port"))
        offers: list[dict[str, Any]] = []
        room = MAX_MESSAGE - 1024
        for session in self._registry.named(target.name)[:MAX_OFFERS]:
            plain = session.peer.certificate_names is None
            offer = {"agent": encode_agent(session.view()), "plain": plain}
            room -= len(json.dumps(offer))
            if room < 0:
                break
            offers.append(offer)
        if message.sender == self._broker_id or not offers:
            return None
        judges = self._plugins.judge_dials
        return self._gate.seal("offers", time.time(), offers=offers, judges=judges)

    async def _judge(self, message: Message) -> DialError | None:
        """Whether our policy forbids a dial of another broker's to an agent of ours."""
        body = message.body
        session = self._sessions.get(text(body, "session"))
        if session is None or isinstance(session, Guest):
            return AgentGone("the agent has left the broker that held it")
        target = Target.parse(*_target(body))
        caller = decode_caller(_mapping(body, "caller"))
        veto = await self._plugins.veto_of_dial(target, session.view(), caller)
        if veto is not None:
            return NotAuthorized(f"not allowed by the broker that holds the agent: {veto}")
        return None

    async def _visited(self, message: Message) -> bytes:
        body = message.body
        session = self._sessions.get(text(body, "session"))
        if session is None or isinstance(session, Guest):
            return self._refuse(AgentGone("the agent has left the broker that held it"))
        pair = (session.session_id, message.sender)
        dial = text(body, "dial") if "dial" in body else ""
        if dial:
            error = await self._judge(message)
            if error is not None:
                return self._refuse(error)
            self._invited[pair] = None
            self._remember_visit(dial, message.sender)
        elif pair not in self._invited:
            return self._refuse(NotAuthorized("no dial of this broker was allowed so far"))
        visit = control.Visit(
            broker_id=message.sender,
            session_id=text(body, "guest"),
            secret=text(body, "secret"),
            reverse_host=text(body, "host"),
            reverse_port=number(body, "port"),
            connections=number(body, "connections"),
            connection_id=dial,
            local_port=number(body, "local_port") if dial else 0,
        )
        if session.speaks_frames:
            session.send(visit)
        elif dial:
            session.send(
                control.Connect(dial, visit.reverse_host, visit.reverse_port, visit.local_port)
            )
        return self._gate.seal("visiting", time.time())

    def _refuse(self, error: DialError) -> bytes:
        return self._gate.seal("refused", time.time(), code=failure_code(error), why=str(error))

    def _remember_visit(self, dial: str, broker: str) -> None:
        self._visits[dial] = broker
        if len(self._visits) > MAX_VISITS:
            del self._visits[next(iter(self._visits))]
        if len(self._invited) > MAX_VISITS:
            del self._invited[next(iter(self._invited))]

    def _failed(self, message: Message) -> None:
        connection_id = text(message.body, "connection")
        wait = self._awaited.get(connection_id)
        if wait is not None and isinstance(wait.owner, Guest):
            if wait.owner.holder != message.sender:
                raise RemoteProtocolError("it tells of another broker's agent")
            wait.connection.set_exception(AgentGone(text(message.body, "why")))

    # Messages in general

    def _admit(self, data: bytes) -> Message | None:
        try:
            return self._gate.admit(data, time.time())
        except Unwelcome as unwelcome:
            self._drop(unwelcome)
            return None

    def _drop(self, unwelcome: Unwelcome) -> None:
        """Count it, and say so once a minute."""
        self._tell_dropped(unwelcome.reason)
        self._dropped[unwelcome.reason] += 1
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_INTERVAL:
            self._complained_at = now
            counts = ", ".join(f"{count} {reason}" for reason, count in self._dropped.items())
            logger.warning("fabric: dropped messages: %s; the last: %s", counts, unwelcome)
            self._dropped.clear()

    async def _tell(self, broker: str, message: bytes) -> None:
        try:
            async with aclosing(self._fabric.ask(_broker(broker), message, ASK_TIMEOUT)) as answers:
                async for _ in answers:
                    break
        except FabricError as error:
            logger.debug("the broker %s was not told: %s", broker, error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            before = time.monotonic() - GUEST_LIFE
            for guest in tuple(self._guests.values()):
                if guest.used_at < before and not guest.streams:
                    self._let_go(guest)

    def _let_go(self, guest: Guest) -> None:
        self._guests.pop((guest.holder, guest.offered.session_id), None)
        if self._by_name.get(guest.name.full) is guest:
            del self._by_name[guest.name.full]
        self._sessions.pop(guest.session_id, None)
        guest.end(None)


def _of_dial(dial: Dial) -> dict[str, Any]:
    target = dial.asked or dial.target
    return {"target": [target.name, target.port], "caller": encode_caller(dial.caller)}


def _agent(name: str) -> str:
    return f"agent.{name}"


def _domain(domain: str) -> str:
    return f"domain.{domain}"


def _broker(broker_id: str) -> str:
    return f"broker.{broker_id}"


def _mapping(body: dict[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key)
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{key!r} is no JSON object")
    return value


def _target(body: dict[str, Any]) -> tuple[str, int]:
    value = body.get("target")
    if not (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    ):
        raise RemoteProtocolError("'target' is no name and port")
    return value[0], value[1]
