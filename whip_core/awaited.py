"""Dials that wait for the reverse connection they asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from whip_core.framed import FramedConnection
from whip_core.raw import RawConnection
from whip_core.stream import Stream

OnFinished = Callable[[Stream], None]
Owner = TypeVar("Owner", bound=Hashable)


@dataclass(slots=True)
class Wait(Generic[Owner]):
    """One such dial. `owner` is the session that was asked."""

    owner: Owner
    extra: Mapping[str, Any]
    on_finished: OnFinished
    connection: asyncio.Future[FramedConnection | RawConnection]


class Awaited(Generic[Owner]):
    """The waiting dials by the id that their connection has to show.

    One table for a broker: an old agent's connection shows its id and nothing else.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Wait[Owner]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, connection_id: str, wait: Wait[Owner]) -> None:
        self._by_id[connection_id] = wait

    def remove(self, connection_id: str) -> None:
        self._by_id.pop(connection_id, None)

    def get(self, connection_id: str) -> Wait[Owner] | None:
        """None if nobody waits under that id, or not any more."""
        wait = self._by_id.get(connection_id)
        return wait if wait is not None and not wait.connection.done() else None

    def fail_all(self, owner: Owner, error: Callable[[], Exception]) -> None:
        """`owner` brings no connection any more: tell everyone who waits for it."""
        for wait in self._by_id.values():
            if wait.owner is owner and not wait.connection.done():
                wait.connection.set_exception(error())
