"""Where reverse connections of one registration go, and how many are kept parked there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from client_agent.parker import Parker
from whip_core.framed import FramedConnection
from whip_core.preamble import Preamble
from whip_core.tasks import TaskSet


@dataclass(eq=False)
class Berth:
    """A broker's reverse address, and the `introduction` that is good there.

    `connect` opens a connection to a host and port for a dial's id, or to be parked if that
    is empty. The `connections` are those that are open there.
    """

    host: str
    port: int
    introduction: Preamble
    connect: Callable[[Berth, str, int, str], Awaitable[FramedConnection]]
    tasks: TaskSet
    connections: set[FramedConnection] = field(default_factory=set)
    parker: Parker = field(init=False)

    def __post_init__(self) -> None:
        self.parker = Parker(lambda: self.connect(self, self.host, self.port, ""), self.tasks)
