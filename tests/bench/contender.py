"""A contender: one way to reach the service, and the processes that it costs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.load import Place, answers
from bench.processes import Program, wait_until
from bench.service import SMALL


@dataclass(frozen=True)
class Contender:
    """`programs` are its own, by what they are to it; nginx is nobody's."""

    name: str
    place: Place
    programs: Mapping[str, Program] = field(default_factory=dict)

    @property
    def pids(self) -> dict[str, int]:
        return {name: program.pid for name, program in self.programs.items()}

    def wait_ready(self) -> Contender:
        """Wait until the service answers through it."""
        wait_until(
            lambda: answers(self.place, SMALL), f"{self.name} answers", *self.programs.values()
        )
        return self


class Start(Protocol):
    """Starts one contender or several in front of nginx; they are stopped behind the block.

    Raises `Missing` where something is not installed.
    """

    def __call__(
        self, folder: Path, service_port: int
    ) -> AbstractContextManager[tuple[Contender, ...]]: ...
