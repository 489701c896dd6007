"""A control stream at the broker: one agent's call, from its registration to its end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from whip_core import control, grpc_calls
from whip_core.agents import Peer
from whip_core.control_wire import decode_agent_message, encode_broker_message
from whip_core.errors import RegistrationError, RemoteProtocolError
from whip_core.names import MAX_NAME_LENGTH, printable
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

MAX_EARLY = 16
"""Messages that an agent may send while it is let in: ours send none, others a word or two."""

_STATUS = {
    "name-taken": grpc_calls.ALREADY_EXISTS,
    "not-authorized": grpc_calls.PERMISSION_DENIED,
    "invalid": grpc_calls.INVALID_ARGUMENT,
    "replaced": grpc_calls.ABORTED,
    "kicked": grpc_calls.ABORTED,
    "unresponsive": grpc_calls.ABORTED,
    "already-registered": grpc_calls.ABORTED,
    "certificate": grpc_calls.PERMISSION_DENIED,
    "closing": grpc_calls.UNAVAILABLE,
    "agents": grpc_calls.RESOURCE_EXHAUSTED,
    "agents-per-identity": grpc_calls.RESOURCE_EXHAUSTED,
    "unauthenticated": grpc_calls.RESOURCE_EXHAUSTED,
}
"""The status by which a control stream ends; agents tell by it whether to come back soon."""


class ControlHandler(Protocol):
    """Who decides about control streams. `session` is whatever `register` returned."""

    async def register(self, stream: ControlStream, message: control.Register) -> Any:
        """Let the agent in, or raise `RegistrationError`."""

    def received(self, session: Any, message: control.AgentMessage) -> None:
        """May raise `RemoteProtocolError`, which ends the stream."""

    def left(self, session: Any, reason: str) -> None:
        """The stream of a registered agent has ended."""

    def refused(self, peer: Peer, name: str, why: RegistrationError) -> None:
        """A stream is ended by `why` before any agent was registered on it.

        `name` is what it wanted to be registered as, empty if it did not say.
        """


class Carrier(Protocol):
    """The connection on which a control stream is a `call`."""

    @property
    def peer(self) -> Peer: ...

    def send(self, call: int, message: bytes) -> bool:
        """Never blocks; False, and nothing is sent, if too much waits to be."""

    def end(self, call: int, status: int, text: str) -> None:
        """End the call behind what was sent."""

    def registered(self, call: int) -> None:
        """An agent has been let in on it."""

    def over(self, call: int) -> None:
        """Its control stream has ended, whoever has ended it."""


class ControlStream:
    """The broker's end of one agent's control stream. It has `timeout` seconds to register."""

    def __init__(
        self,
        carrier: Carrier,
        call: int,
        handler: ControlHandler,
        tasks: TaskSet,
        timeout: float,
    ) -> None:
        self.peer = carrier.peer
        self._carrier = carrier
        self._call = call
        self._handler = handler
        self._tasks = tasks
        self._session: Any = None
        self._claimed = ""
        self._ended = False
        self._registering: asyncio.Task[None] | None = None
        self._early: list[control.AgentMessage] = []
        loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = loop.call_later(timeout, self._too_late)

    # What the broker says

    def send(self, message: control.BrokerMessage) -> None:
        """Queue a message. Never blocks; an agent that does not read is given up."""
        if not self._ended and not self._carrier.send(self._call, encode_broker_message(message)):
            self.end(RegistrationError("the agent does not read", code="unresponsive"))

    def end(self, why: RegistrationError | None = None, reason: str = "") -> None:
        """End the stream, telling the agent why; the handler is told the `reason`, if another."""
        if self._ended:
            return
        if why is None:
            self._carrier.end(self._call, grpc_calls.OK, "")
        else:
            self._carrier.end(self._call, _STATUS[why.code], str(why))
        self._over(reason or str(why or "it was ended"))

    def refuse(self, why: RegistrationError) -> None:
        """End the stream before any agent is registered on it."""
        if not self._ended:
            self._handler.refused(self.peer, self._claimed, why)
            self.end(why)

    # What the agent says

    def heard(self, data: bytes) -> None:
        """Take a message in."""
        try:
            message = decode_agent_message(data)
            if message is not None:
                self._take(message)
        except Exception as error:  # noqa: BLE001 - it ends this stream, and no other
            self._went_wrong(error)

    def finished(self, broken: str = "") -> None:
        """Nothing more comes: the agent has said it all, or the stream is `broken`."""
        if self._ended:
            return
        if broken:
            self._over(f"its control stream was lost: {broken}")
        else:
            self._carrier.end(self._call, grpc_calls.OK, "")
            self._over("it closed its control stream")

    def _take(self, message: control.AgentMessage) -> None:
        if self._session is not None:
            self._handler.received(self._session, message)
        elif self._registering is not None:
            if len(self._early) == MAX_EARLY:
                raise RemoteProtocolError("it sent too much before it was registered")
            self._early.append(message)
        elif isinstance(message, control.Register):
            self._stop_deadline()
            self._claimed = printable(f"{message.hostname}.{message.domain}", MAX_NAME_LENGTH)
            self._registering = self._tasks.spawn(self._register(message), "register an agent")
        else:
            raise RemoteProtocolError("the first message has to be a registration")

    async def _register(self, message: control.Register) -> None:
        try:
            session = await self._handler.register(self, message)
            self._registering = None
            self._let_in(session)
        except Exception as error:  # noqa: BLE001 - the same
            self._registering = None
            self._went_wrong(error)

    def _let_in(self, session: Any) -> None:
        if self._ended:  # what was sent to it was too much already
            self._handler.left(session, "it was ended")
            return
        self._session = session
        self._carrier.registered(self._call)
        early, self._early = self._early, []
        for message in early:
            if not self._ended:
                self._take(message)

    def _too_late(self) -> None:
        self.refuse(RegistrationError("no registration came in time", code="invalid"))

    def _went_wrong(self, error: Exception) -> None:
        """End the stream for what came of a message."""
        reason = ""
        match error:
            case RegistrationError():
                why = error
            case RemoteProtocolError():
                why = RegistrationError(str(error), code="invalid")
                reason = f"protocol error: {error}"
            case _:
                logger.error("control stream of %s failed", self.peer.address, exc_info=error)
                why = RegistrationError("the broker failed", code="closing")
        if self._session is None:
            self.refuse(why)
        else:
            self.end(why, reason)

    def _over(self, reason: str) -> None:
        """Whoever has ended it: the handler hears of it if it has let the agent in."""
        self._ended = True
        self._stop_deadline()
        if self._registering is not None:
            self._registering.cancel()
        self._carrier.over(self._call)
        session, self._session = self._session, None
        if session is not None:
            self._handler.left(session, reason)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
