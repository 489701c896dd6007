"""Agents that other brokers hold and that were dialled here: sessions without a control stream.

What goes over the control stream of an agent of ours travels, for a guest, by way of the
broker that holds it. What it parked here serves the next dial in one round trip, and needs
no fabric, unless the holder's plugins judge dials: then that broker is asked first.

A guest that cannot connect to us is dialled by way of its holder, if both allow that
(`relaying`); for a while afterwards it is dialled that way at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from whip_core import control, json_fields
from whip_core.agents import AgentView, Peer, Registration
from whip_core.awaited import Awaited, OnFinished
from whip_core.dial import Dial, MayReturn
from whip_core.dial_wire import decode_agent, encode_caller
from whip_core.errors import (
    AgentGone,
    DialError,
    DialTimeout,
    RegistrationError,
    RemoteProtocolError,
)
from whip_core.fabric import FabricError
from whip_core.fabric_mail import FabricMail
from whip_core.fabric_wire import Message, encode_target, mapping, text
from whip_core.framed import FramedConnection
from whip_core.host_patterns import covers_agent
from whip_core.names import check_port, host_port
from whip_core.raw import RawConnection
from whip_core.relaying import CannotRelay, Pass, Relaying
from whip_core.session import Session
from whip_core.stream import Stream
from whip_core.tasks import TaskSet

MAX_OFFERS = 16
"""Agents of a domain that one answer offers: enough to pick among, and it stays short."""
MAX_GUESTS = 20_000
"""Agents of others that are kept at once; a guest costs as much as an agent of our own."""
GUEST_LIFE = 300.0
"""Seconds after its last dial that a guest is let go: its parked connection is worth that."""
SWEEP_INTERVAL = 30.0
STRAIGHT_PATIENCE = 3.0
"""Seconds that an agent has to connect to us, where its holder would relay if it cannot: a
connection and its handshake take four round trips, and lost packets say nothing."""
RELAYED_FOR = 300.0
"""Seconds that a guest is dialled by way of its holder until the straight way is tried again:
a network that is mended is found, and a dial that waits in vain for it is a rare one."""


class CannotConnect(AgentGone):
    """An agent did not connect to us. Its holder may have sent a pass along."""

    def __init__(self, why: str, one: Pass | None) -> None:
        super().__init__(why)
        self.one = one


class Guest(Session):
    """An agent that another broker holds, as far as it has connections here."""

    def __init__(
        self,
        mail: FabricMail,
        tasks: TaskSet,
        holder: str,
        view: AgentView,
        plain: bool,
        reverse_address: tuple[str, int],
        awaited: Awaited[Session],
        relaying: Relaying | None,
    ) -> None:
        self.holder = holder
        self.offered = view
        self.used_at = time.monotonic()
        self.holder_judges = True
        self._mail = mail
        self._relaying = relaying
        self._reverse_place = host_port(*reverse_address)
        self._relayed_until = float("-inf")
        registration = Registration(
            name=view.name,
            ports=view.ports,
            labels=view.labels,
            instance_id=view.instance_id,
            protocol_version=view.protocol_version,
            software_version=view.software_version,
        )
        peer = Peer(view.address, None if plain else view.certificate_names)
        by_way_of_holder = _ByWayOfHolder(
            mail, tasks, self, peer, reverse_address, awaited, relaying is not None
        )
        super().__init__(by_way_of_holder, registration, reverse_address, awaited)
        self.control.receive(control.Register(view.name.hostname, view.name.domain, view.ports))
        self.round_trips.latest = view.round_trip
        self.pool.start()

    def view(self) -> AgentView:
        """What the holder said of its load comes on top of our own streams."""
        mine = super().view()
        return mine._replace(streams=mine.streams + self.offered.streams)

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
        now = asyncio.get_running_loop().time
        deadline = now() + timeout
        self.used_at = time.monotonic()
        one: Pass | None = None
        if self.parked or now() >= self._relayed_until:
            if self.holder_judges and self.parked:
                async with asyncio.timeout_at(deadline):
                    await self._ask_permission(extra["whip"])
            try:
                return await super().open(
                    port,
                    dial_id,
                    timeout=deadline - now(),
                    extra=extra,
                    on_finished=on_finished,
                    after=after,
                )
            except CannotConnect as error:
                if self._relaying is None:
                    raise AgentGone(str(error)) from error
                one, why = error.one, str(error)
            except TimeoutError as error:
                raise DialTimeout(
                    f"no answer within {timeout:.1f} s from agent {self.name}, "
                    f"which was told to connect back to {self._reverse_place}"
                ) from error
        else:
            why = f"the agent could not connect back to {self._reverse_place} lately"
        async with asyncio.timeout_at(deadline):
            try:
                return await self._by_relay(one, port, dial_id, extra, on_finished), False
            except AgentGone as error:
                raise AgentGone(f"{why}; and {error}") from error

    async def _connection(
        self, port: int, dial_id: bytes, extra: Mapping[str, Any], on_finished: OnFinished
    ) -> FramedConnection | RawConnection:
        try:
            async with asyncio.timeout(None if self._relaying is None else STRAIGHT_PATIENCE):
                return await super()._connection(port, dial_id, extra, on_finished)
        except TimeoutError as error:
            why = f"the agent did not connect back to {self._reverse_place}"
            raise CannotConnect(f"{why} within {STRAIGHT_PATIENCE:g} s", None) from error

    async def _by_relay(
        self,
        one: Pass | None,
        port: int,
        dial_id: bytes,
        extra: Mapping[str, Any],
        on_finished: OnFinished,
    ) -> Stream:
        """A stream by way of the holder, which is asked for a pass if it has given none."""
        assert self._relaying is not None
        dial: Dial = extra["whip"]
        if one is None:
            question = {"dial": dial_id.hex(), "local_port": port, **of_dial(dial)}
            try:
                answer = await self._mail.request(
                    self.holder, "relay", "relaying", session=self.offered.session_id, **question
                )
                one = Pass.decode(answer.body)
            except (FabricError, RemoteProtocolError) as error:
                raise AgentGone(f"its broker {self.holder} cannot relay: {error}") from error
        try:
            stream = await self._relaying.open(
                one, port, dial_id, extra=extra, on_finished=on_finished
            )
        except CannotRelay as error:
            raise AgentGone(f"its broker {self.holder} cannot relay: {error}") from error
        dial.relayed_by = self.holder
        self._relayed_until = asyncio.get_running_loop().time() + RELAYED_FOR
        return stream

    async def _ask_permission(self, dial: Dial) -> None:
        """Ask the holder whether a parked connection may serve the dial. Raises `DialError`."""
        try:
            await self._mail.request(
                self.holder, "allow", "allowed", session=self.offered.session_id, **of_dial(dial)
            )
        except FabricError as problem:
            raise MayReturn(f"the broker that judges dials to {self.name}: {problem}") from problem
        except AgentGone as gone:
            raise MayReturn(str(gone)) from gone


class _ByWayOfHolder:
    """A guest's control stream: its holder is asked to have it visit us."""

    def __init__(
        self,
        mail: FabricMail,
        tasks: TaskSet,
        guest: Guest,
        peer: Peer,
        reverse_address: tuple[str, int],
        awaited: Awaited[Session],
        takes_relay: bool,
    ) -> None:
        self._mail = mail
        self._tasks = tasks
        self._guest = guest
        self._takes_relay = takes_relay
        self._reverse_address = reverse_address
        self._awaited = awaited
        self._target_parked = 0
        self._invited = False
        self.peer = peer

    def send(self, message: control.BrokerMessage) -> None:
        match message:
            case control.Park(connections):
                self._target_parked = connections
                if self._invited:  # else the first dial's invitation says it
                    self._invite(None)
            case control.Connect():
                self._invited = True
                self._invite(message)
            case _:
                pass  # pings: its own broker measures it

    def end(self, why: RegistrationError | None = None) -> None:
        self._target_parked = 0
        if self._invited:
            self._invite(None)

    def _invite(self, dial: control.Connect | None) -> None:
        self._tasks.spawn(self._request(dial), f"invite {self._guest.name}")

    async def _request(self, dial: control.Connect | None) -> None:
        host, port = self._reverse_address
        body: dict[str, Any] = {
            "session": self._guest.offered.session_id,
            "guest": self._guest.session_id,
            "secret": self._guest.secret,
            "host": host,
            "port": port,
            "connections": self._target_parked,
        }
        if dial is not None:
            wait = self._awaited.get(dial.connection_id)
            if wait is None:
                return  # it was given up
            body |= of_dial(wait.extra["whip"])
            body |= {"dial": dial.connection_id, "local_port": dial.local_port}
            body |= {"relay": self._takes_relay}
        error: DialError
        try:
            await self._mail.request(self._guest.holder, "visit", "visiting", **body)
            return
        except FabricError as problem:
            error = MayReturn(f"the broker that holds agent {self._guest.name}: {problem}")
        except AgentGone as gone:
            error = MayReturn(str(gone))
        except DialError as refused:
            error = refused
        if dial is not None and (wait := self._awaited.get(dial.connection_id)) is not None:
            wait.connection.set_exception(error)


class Guests:
    """The guests of one broker. `sessions` are all of its sessions by their id."""

    def __init__(
        self,
        mail: FabricMail,
        reverse_address: Callable[[], tuple[str, int]],
        sessions: dict[str, Session],
        awaited: Awaited[Session],
        tasks: TaskSet,
        relaying: Relaying | None,
    ) -> None:
        self._mail = mail
        self._relaying = relaying
        self._reverse_address = reverse_address
        self._sessions = sessions
        self._awaited = awaited
        self._tasks = tasks
        self._guests: dict[tuple[str, str], Guest] = {}
        self._by_name: dict[str, Guest] = {}

    def __iter__(self) -> Iterator[Guest]:
        return iter(self._guests.values())

    def named(self, name: str) -> Guest | None:
        """The one that was offered last under the full name."""
        return self._by_name.get(name)

    def offered(self, message: Message) -> list[Guest]:
        """The agents that another broker offers. Raises `RemoteProtocolError`."""
        offers = json_fields.array(message.body.get("offers"), "what it offers")
        if len(offers) > MAX_OFFERS:
            raise RemoteProtocolError(f"it offers {len(offers)} agents (at most {MAX_OFFERS})")
        guests = []
        for each in offers:
            offer = json_fields.mapping(each, "an offer")
            view = decode_agent(offer.get("agent"))
            try:
                for port in view.ports:
                    check_port(port)
            except ValueError as error:
                raise RemoteProtocolError(str(error)) from error
            plain = bool(offer.get("plain"))
            if not (plain or covers_agent(view.certificate_names, view.name)):
                # As its holder must have seen: whoever sends messages cannot make names up.
                raise RemoteProtocolError(f"{view.name} is offered with a certificate for others")
            guest = self._guest(message.sender, view, plain)
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
            guest = Guest(
                *(self._mail, self._tasks, holder, view, plain),
                *(address, self._awaited, self._relaying),
            )
            self._guests[key] = guest
            self._sessions[guest.session_id] = guest
        guest.offered = view
        guest.round_trips.latest = view.round_trip
        self._by_name[view.name.full] = guest
        return guest

    def failed(self, message: Message) -> None:
        """The holder reports that a guest could not connect to us.

        Raises `RemoteProtocolError`.
        """
        wait = self._awaited.get(text(message.body, "connection"))
        if wait is not None and isinstance(wait.owner, Guest):
            if wait.owner.holder != message.sender:
                raise RemoteProtocolError("it tells of another broker's agent")
            one = Pass.decode(mapping(message.body, "pass")) if "pass" in message.body else None
            wait.connection.set_exception(CannotConnect(text(message.body, "why"), one))

    async def sweep(self) -> None:
        """Let those go that nobody dials, until cancelled."""
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

    def close(self) -> None:
        for guest in tuple(self._guests.values()):
            self._let_go(guest)


def of_dial(dial: Dial) -> dict[str, Any]:
    """What a holder is told of a dial, so that it can judge it."""
    target = dial.asked or dial.target
    return {"target": encode_target(target), "caller": encode_caller(dial.caller)}
