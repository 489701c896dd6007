"""What joins several brokers: a fabric carries short messages to whoever holds a key.

An implementation knows nothing of agents. It is asked to `hold` keys for its broker (a
name, a domain, the broker's id), and to `ask` those who hold one. There is no directory
behind it: whoever holds a key answers. Ours are `fabric_local` (brokers of one process)
and `fabric_nats`; a plugin's `whip_fabric` hook gives others (docs/brokers.md).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, runtime_checkable

from whip_core.errors import WhipError

MAX_MESSAGE = 64 * 1024
"""Octets of one message, question or answer: a few agents with all their labels, or a
caller with the headers of a request that is not extreme."""

Answer = Callable[[bytes], Awaitable[bytes | None]]
"""Takes a question; gives the answer, or None to say nothing. Raises nothing."""


Dropped = Callable[[str, str], None]
"""Takes the reason for which a question was dropped, one of a few words, and a text."""


class FabricError(WhipError):
    """The fabric cannot be used now; what is connected is not touched by that."""


class Fabric(Protocol):
    """One broker's place in a fabric. Never raises anything but `FabricError`."""

    async def open(self, answer: Answer) -> None:
        """Take part: from here on `answer` is called for each question to a key we hold.

        A fabric that is down is not an error: it keeps trying, and holds the keys once it is up.
        """

    async def close(self) -> None:
        """Take part no more; every key is released."""

    def hold(self, key: str, *, shared: bool) -> None:
        """Answer questions to `key`. Of those who hold it `shared`, any one is asked."""

    def release(self, key: str) -> None:
        """Answer them no more."""

    def ask(self, key: str, question: bytes, timeout: float) -> AsyncGenerator[bytes, None]:
        """The answers of those who hold `key`, as they come, for up to `timeout` seconds.

        It ends at once if nobody does. Raises `FabricError` if it cannot be asked.
        """


@runtime_checkable
class DropsQuestions(Protocol):
    """A `Fabric` that may drop a question itself, before it is answered: it says so here."""

    tell_dropped: Dropped
    """Set by whoever opens the fabric, who counts."""
