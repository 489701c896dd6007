"""What idle processes and idle connections hold in memory."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from bench import whip
from bench.contender import Contender
from bench.load import TIMEOUT, Place
from bench.rows import CONNECTION_AGENT, CONNECTION_BROKER, IDLE_AGENT, Measured
from bench.service import SMALL
from bench.spread import Spread
from bench.usage import resident_kb

SETTLE = 3.0
"""Seconds without traffic before memory is read."""
WARM_UP = 100
"""Connections that come first, so that code and buffers of the first ones do not count."""
CONNECTIONS = 1000


def agent_process(folder: Path, service_port: int, rounds: int) -> Measured:
    """A fresh `whip client` that has registered, parked a connection, and been used once."""
    sizes = []
    for _ in range(rounds):
        with whip.forward(folder, service_port) as (contender,):
            time.sleep(SETTLE)
            sizes.append(resident_kb(contender.pids["agent"]) / 1024)
    return Measured(IDLE_AGENT, Spread.of(sizes))


def connections(
    folder: Path, service_port: int, rounds: int, count: int, progress: Callable[[str], None]
) -> list[Measured]:
    """Fresh processes, and `count` streams through them that have been used and are idle."""
    count = min(count, CONNECTIONS)
    sizes: dict[str, list[float]] = {"agent": [], "broker": []}
    for number in range(1, rounds + 1):
        progress(f"connection-agent, -broker: round {number} of {rounds}")
        with whip.forward(folder, service_port) as (contender,), contextlib.ExitStack() as stack:
            _open(stack, contender.place, WARM_UP)
            before = _memory(contender)
            _open(stack, contender.place, count)
            after = _memory(contender)
            for name, each in sizes.items():
                each.append((after[name] - before[name]) / count)
    note = f"{count:,} streams"
    return [
        Measured(CONNECTION_AGENT, Spread.of(sizes["agent"]), note),
        Measured(CONNECTION_BROKER, Spread.of(sizes["broker"]), note),
    ]


def _memory(contender: Contender) -> dict[str, float]:
    time.sleep(SETTLE)
    return {name: resident_kb(pid) for name, pid in contender.pids.items()}


def _open(stack: contextlib.ExitStack, place: Place, count: int) -> None:
    """Open connections that have had one answer each, and keep them."""
    request = f"GET {place.origin}/small HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode()
    for _ in range(count):
        address = ("127.0.0.1", place.port)
        connection = stack.enter_context(socket.create_connection(address, TIMEOUT))
        connection.sendall(request)
        received = b""
        while not received.endswith(b"x" * SMALL):
            piece = connection.recv(4096)
            if not piece:
                raise ConnectionError(f"{place} hung up")
            received += piece
