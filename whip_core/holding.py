"""What a broker does for others with the agents that it holds itself.

It answers who asks for their names, has them visit the broker that dials, and judges each
such dial by its own plugins before the agent is told anything.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from typing import Any

from whip_core import control
from whip_core.dial_wire import decode_caller, encode_agent
from whip_core.errors import AgentGone, DialError, NotAuthorized
from whip_core.fabric import MAX_MESSAGE
from whip_core.fabric_mail import FabricMail
from whip_core.fabric_wire import (
    Message,
    agent_key,
    domain_key,
    mapping,
    number,
    target_in,
    text,
)
from whip_core.guests import MAX_OFFERS, Guest
from whip_core.names import Target
from whip_core.plugins import Plugins
from whip_core.registry import Registry
from whip_core.relaying import Errand, Relaying
from whip_core.session import Session
from whip_core.tasks import TaskSet

MAX_VISITS = 65_536
VISIT_LIFE = 15.0
"""How many dials of other brokers are remembered, and for how many seconds, in case the agent
reports a failure (a dial has 10 s)."""


class Holder:
    """`sessions` are the broker's by their id, guests among them."""

    def __init__(
        self,
        mail: FabricMail,
        sessions: dict[str, Session],
        registry: Registry[Session],
        plugins: Plugins,
        tasks: TaskSet,
        relaying: Relaying | None,
    ) -> None:
        self._relaying = relaying
        self._mail = mail
        self._sessions = sessions
        self._registry = registry
        self._plugins = plugins
        self._tasks = tasks
        self._domains: dict[str, set[Session]] = {}
        """Those that may be offered, by domain."""
        self._visits: dict[str, _Visit] = {}
        self._invited: dict[tuple[str, str], None] = {}

    # Who has subscribed is who is there

    def joined(self, session: Session) -> None:
        name = session.name
        self._mail.fabric.hold(agent_key(name.full), shared=False)
        if name.domain not in self._domains:
            self._mail.fabric.hold(domain_key(name.domain), shared=True)
        self._domains.setdefault(name.domain, set()).add(session)

    def left(self, session: Session) -> None:
        """The session has ended; another may hold its name already."""
        name = session.name
        if self._registry.get(name.full) is None:
            self._mail.fabric.release(agent_key(name.full))
        self._leave_domain(session)

    def draining(self, session: Session) -> None:
        """It takes no new dials: nobody shall be offered it."""
        if self._registry.get(session.name.full) is session:
            self._mail.fabric.release(agent_key(session.name.full))
        self._leave_domain(session)

    def _leave_domain(self, session: Session) -> None:
        """Of those who hold a domain's key one is asked: it had better have an agent to offer."""
        domain = session.name.domain
        members = self._domains.get(domain, set())
        members.discard(session)
        if not members and self._domains.pop(domain, None) is not None:
            self._mail.fabric.release(domain_key(domain))

    def drain(self) -> None:
        """Offer none of our agents any more; those that others reach already go on."""
        for session in self._registry:
            self._mail.fabric.release(agent_key(session.name.full))
        for domain in self._domains:
            self._mail.fabric.release(domain_key(domain))

    # What others ask

    def offer(self, message: Message) -> bytes | None:
        """Who of ours has the name, as an answer to seek."""
        target = Target.parse(text(message.body, "name"), number(message.body, "port"))
        offers: list[dict[str, Any]] = []
        room = MAX_MESSAGE - 1024
        named = self._registry.named(target.name)
        if len(named) > MAX_OFFERS:
            named = random.sample(named, MAX_OFFERS)  # all of them get their share
        for session in named:
            plain = session.peer.certificate_names is None
            offer = {"agent": encode_agent(session.view()), "plain": plain}
            room -= len(json.dumps(offer))
            if room < 0:
                break
            offers.append(offer)
        if message.sender == self._mail.broker_id or not offers:
            return None
        return self._mail.seal("offers", offers=offers, judges=self._plugins.judge_dials)

    async def allow(self, message: Message) -> bytes:
        """Whether a connection that is parked elsewhere may be used."""
        try:
            await self._judge(message)
        except DialError as error:
            return self._mail.refuse(error)
        return self._mail.seal("allowed")

    async def visit(self, message: Message) -> bytes:
        """Have an agent of ours connect to the broker that asks."""
        try:
            await self._send_visiting(message)
        except DialError as error:
            return self._mail.refuse(error)
        return self._mail.seal("visiting")

    async def relay(self, message: Message) -> bytes:
        """Let the broker that asks in, to have its stream relayed to an agent of ours."""
        try:
            return self._mail.seal("relaying", **self._pass(await self._errand(message)))
        except DialError as error:
            return self._mail.refuse(error)

    async def _errand(self, message: Message) -> Errand:
        if self._relaying is None:
            raise AgentGone(f"its broker {self._mail.broker_id} relays nothing (--relay)")
        visit = self._visits.pop(text(message.body, "dial"), None)
        if visit is not None and visit.errand.broker_id == message.sender:
            return visit.errand  # it was judged then
        return _errand(message, await self._judge(message))

    def _pass(self, errand: Errand) -> dict[str, Any]:
        assert self._relaying is not None
        return self._relaying.admit(errand).encode()

    async def _send_visiting(self, message: Message) -> None:
        body = message.body
        session = self._session(message)
        pair = (session.session_id, message.sender)
        dial = text(body, "dial") if "dial" in body else ""
        if dial:
            session = await self._judge(message)
            self._invited[pair] = None
            self._remember_visit(_errand(message, session), bool(body.get("relay")))
        elif pair not in self._invited:
            raise NotAuthorized("no dial of this broker was allowed so far")
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

    def _session(self, message: Message) -> Session:
        """The agent of ours that it is about. Raises `AgentGone`."""
        session = self._sessions.get(text(message.body, "session"))
        if session is None or isinstance(session, Guest):
            raise AgentGone("the agent has left the broker that held it")
        return session

    async def _judge(self, message: Message) -> Session:
        """The agent, if our policy lets another broker dial it. Raises `DialError`."""
        session = self._session(message)
        target = target_in(message.body)
        caller = decode_caller(mapping(message.body, "caller"))
        veto = await self._plugins.veto_of_dial(target, session.view(), caller)
        if veto is not None:
            raise NotAuthorized(f"not allowed by the broker that holds the agent: {veto}")
        return session

    def _remember_visit(self, errand: Errand, takes_relay: bool) -> None:
        now = time.monotonic()
        while self._visits:
            oldest = next(iter(self._visits))
            if len(self._visits) < MAX_VISITS and now - self._visits[oldest].at < VISIT_LIFE:
                break
            del self._visits[oldest]
        self._visits[errand.dial] = _Visit(errand, takes_relay, now)
        if len(self._invited) > MAX_VISITS:
            del self._invited[next(iter(self._invited))]

    def connect_failed(self, connection_id: str, why: str) -> None:
        """An agent of ours could not do what it was told for another broker."""
        visit = self._visits.pop(connection_id, None)
        if visit is None:
            return
        body: dict[str, Any] = {"connection": connection_id, "why": why}
        if visit.takes_relay and self._relaying is not None:
            body["pass"] = self._pass(visit.errand)
        telling = self._mail.tell(visit.errand.broker_id, "failed", **body)
        self._tasks.spawn(telling, "tell of a failure")


@dataclass(frozen=True, slots=True)
class _Visit:
    """What an agent of ours was told to do for another broker, and when."""

    errand: Errand
    takes_relay: bool
    at: float


def _errand(message: Message, session: Session) -> Errand:
    """A dial that was allowed."""
    body = message.body
    return Errand(
        broker_id=message.sender,
        session=session,
        target=target_in(body),
        caller=decode_caller(mapping(body, "caller")),
        port=number(body, "local_port"),
        dial=text(body, "dial"),
    )
