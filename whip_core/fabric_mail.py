"""One broker's messages over a fabric: sending, admission, and counting what is dropped."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from whip_core.dial_wire import encode_failure, failure
from whip_core.errors import AgentGone, DialError, RemoteProtocolError
from whip_core.fabric import DropsQuestions, Fabric, FabricError
from whip_core.fabric_wire import Gate, Message, Unwelcome, broker_key, number, text

logger = logging.getLogger(__name__)

ASK_TIMEOUT = 2.0
"""Seconds for a question to the fabric: many times what it takes when all is well, and a
fraction of a dial's time when a broker has just died."""
COMPLAINT_INTERVAL = 60.0
"""Seconds between two log lines about messages that were dropped."""

Answer = Callable[[Message], Awaitable[bytes | None]]
"""Gives the sealed answer to a message, or None. Raises `RemoteProtocolError` or `ValueError`
for one that is malformed."""


class FabricMail:
    """`dropped` is told the reason for which a message was not let in."""

    def __init__(
        self, fabric: Fabric, cluster: str, broker_id: str, dropped: Callable[[str], None]
    ) -> None:
        self.fabric = fabric
        self.cluster = cluster
        self.broker_id = broker_id
        self._gate = Gate(cluster, broker_id)
        self._tell_dropped = dropped
        self._dropped: collections.Counter[str] = collections.Counter()
        self._complained_at = float("-inf")

    async def open(self, answer: Answer) -> None:
        """Take part; `answer` is called for each message that is let in."""

        async def answer_data(data: bytes) -> bytes | None:
            message = self._admit(data)
            if message is None:
                return None
            try:
                return await answer(message)
            except (RemoteProtocolError, ValueError) as error:
                self.drop_malformed(error)
            except Exception:
                logger.exception("a message of the broker %s failed", message.sender)
            return None

        if isinstance(self.fabric, DropsQuestions):
            self.fabric.tell_dropped = lambda reason, why: self._drop(Unwelcome(reason, why))
        await self.fabric.open(answer_data)

    async def close(self) -> None:
        await self.fabric.close()

    def seal(self, kind: str, **body: Any) -> bytes:
        return self._gate.seal(kind, time.time(), **body)

    def refuse(self, error: DialError) -> bytes:
        """The answer that has `request` raise this error at the other end."""
        code, why = encode_failure(error)
        return self.seal("refused", code=code, why=why)

    async def ask(
        self, key: str, kind: str, *, timeout: float = ASK_TIMEOUT, **body: Any
    ) -> AsyncGenerator[Message, None]:
        """The answers of those who hold `key`. Raises `FabricError`."""
        async with aclosing(self.fabric.ask(key, self.seal(kind, **body), timeout)) as answers:
            async for data in answers:
                message = self._admit(data)
                if message is not None:
                    yield message

    async def request(self, broker: str, kind: str, *granted: str, **body: Any) -> Message:
        """What a broker grants: its answer, of a kind among `granted`.

        Raises the `DialError` that it refuses with, and `FabricError`.
        """
        async with aclosing(self.ask(broker_key(broker), kind, **body)) as answers:
            async for answer in answers:
                if answer.sender != broker:
                    continue
                if answer.kind in granted:
                    return answer
                if answer.kind == "refused":
                    try:
                        code, why = number(answer.body, "code"), text(answer.body, "why")
                    except RemoteProtocolError as error:
                        self.drop_malformed(error)
                        continue
                    raise failure(code, why)
        raise AgentGone(f"the broker {broker}, which holds it, does not answer")

    async def tell(self, broker: str, kind: str, **body: Any) -> None:
        """Say something that has no answer."""
        try:
            async with aclosing(self.ask(broker_key(broker), kind, **body)) as answers:
                async for _ in answers:
                    break
        except FabricError as error:
            logger.debug("the broker %s was not told: %s", broker, error)

    def drop_malformed(self, error: Exception) -> None:
        """Count a message that was let in and makes no sense."""
        self._drop(Unwelcome("malformed", str(error)))

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
