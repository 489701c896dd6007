"""Agents that other brokers hold: found over a fabric, and reached without a hop.

A name that nobody has registered here is sought. The broker that holds its agent (`holding`)
tells it to open reverse connections straight to us, where it is a guest (`guests`).

Both brokers' policies are asked for each dial: ours like for any agent, the holder's before
its agent is told anything and, if it has plugins that judge dials, before one is served by a
connection that is parked here. A dial that the holder relays is judged by it once, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import aclosing

from whip_core.awaited import Awaited
from whip_core.caller import Caller
from whip_core.candidates import Candidates, exposed_port, not_exposed
from whip_core.errors import RemoteProtocolError, SettingsError
from whip_core.fabric import Fabric, FabricError
from whip_core.fabric_mail import ASK_TIMEOUT, FabricMail
from whip_core.fabric_wire import Message, agent_key, broker_key, domain_key
from whip_core.guests import Guest, Guests
from whip_core.holding import Holder
from whip_core.names import Target
from whip_core.plugins import Plugins
from whip_core.registry import Registry
from whip_core.relaying import Relaying
from whip_core.reverse_listener import Arrival
from whip_core.session import Session
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

ANOTHER_TIMEOUT = 0.5
"""Seconds for another broker's offer when the first came to nothing: it may be the only one."""


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
        relaying: Relaying | None = None,
    ) -> None:
        """`sessions` are the broker's by their id, where guests are entered too; `dropped`
        is told the reason for which a message was not let in."""
        self._tasks = TaskSet()
        self._mail = FabricMail(fabric, cluster, broker_id, dropped)
        self._guests = Guests(self._mail, reverse_address, sessions, awaited, self._tasks, relaying)
        self._relaying = relaying
        self.cluster = cluster
        self.holder = Holder(self._mail, sessions, registry, plugins, self._tasks, relaying)
        """Our own agents, as far as they are others' business."""

    async def __aenter__(self) -> Neighbours:
        try:
            await self._mail.open(self._answer)
            await self._check_alone()
        except BaseException:
            await self._mail.close()
            raise
        self._mail.fabric.hold(broker_key(self._mail.broker_id), shared=False)
        self._tasks.spawn(self._guests.sweep(), "guests")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # First of all: no broker shall count on us any more.
        await self._mail.close()
        await self._tasks.cancel_all()
        if self._relaying is not None:
            await self._relaying.close()
        self._guests.close()
        await self._tasks.cancel_all()

    async def _check_alone(self) -> None:
        """Raises `SettingsError` if another broker has our id."""
        broker_id = self._mail.broker_id
        try:
            async with aclosing(self._mail.ask(broker_key(broker_id), "hello")) as answers:
                async for _ in answers:
                    raise SettingsError(
                        f"another broker of the cluster {self.cluster} has our id "
                        f"{broker_id}: each must have its own"
                    )
        except FabricError as error:
            logger.warning("the fabric is not available yet: %s", error)

    async def _answer(self, message: Message) -> bytes | None:
        match message.kind:
            case "seek":
                return self.holder.offer(message)
            case "visit":
                return await self.holder.visit(message)
            case "allow":
                return await self.holder.allow(message)
            case "relay":
                return await self.holder.relay(message)
            case "failed":
                self._guests.failed(message)
                return None
            case "hello":
                if message.sender == self._mail.broker_id:
                    logger.error("another broker with our id %s was refused", message.sender)
                return self._mail.seal("hello")
            case _:
                raise RemoteProtocolError(f"its kind {message.kind[:40]!r} is unknown")

    def welcome(self, arrival: Arrival) -> bool:
        """Take in a connection of another broker's; False if it is none.

        Raises `RemoteProtocolError` for one that must not be let in.
        """
        return self._relaying is not None and self._relaying.welcome(arrival)

    async def find(
        self, target: Target, caller: Caller, tried: Collection[Session]
    ) -> Candidates[Session] | None:
        """Agents of other brokers that may serve `target`, without those `tried`.

        None if there is none. Raises `PortNotExposed` if there are, and none exposes it.
        """
        known = self._guests.named(target.name)
        if (
            known is not None
            and known.parked
            and known not in tried
            and exposed_port(known.ports, target.port) is not None
        ):
            return Candidates[Session]([known], target.port)
        for key in (agent_key(target.name), domain_key(target.name)):
            guests = await self._seek(key, target, tried)
            if not guests:
                continue
            serving = [guest for guest in guests if exposed_port(guest.ports, target.port)]
            if not serving:
                raise not_exposed(target, (guest.ports for guest in guests))
            return Candidates[Session](serving, target.port)
        return None

    async def _seek(self, key: str, target: Target, tried: Collection[Session]) -> list[Guest]:
        """The first answer with somebody who has not been tried."""
        question = {"name": target.name, "port": target.port}
        timeout = ANOTHER_TIMEOUT if tried else ASK_TIMEOUT
        try:
            async with aclosing(
                self._mail.ask(key, "seek", timeout=timeout, **question)
            ) as answers:
                async for message in answers:
                    if message.kind != "offers" or message.sender == self._mail.broker_id:
                        continue
                    try:
                        guests = self._guests.offered(message)
                    except RemoteProtocolError as error:
                        self._mail.drop_malformed(error)
                        continue
                    if guests := [guest for guest in guests if guest not in tried]:
                        return guests
        except FabricError as error:
            logger.info("%s is not registered here, and others cannot be asked: %s", target, error)
        return []
