"""The load: wrk for requests, a socket for one big body. Gives rates, and what went wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.processes import DidNotWork, find

SCRIPT = Path(__file__).with_name("wrk.lua")
TIMEOUT = 60.0
"""Seconds without a byte, after which a transfer has failed."""
BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a contender: small requests on `connections`, or one big body (0)."""

    name: str
    what: str
    unit: str
    connections: int = 0
    keep_alive: bool = True


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("keep-alive-1", "keep-alive, 1 connection", "requests/s", 1),
        Workload("keep-alive-32", "keep-alive, 32 connections", "requests/s", 32),
        Workload("new-16", "new connections, 16 at once", "connections/s", 16, keep_alive=False),
        Workload("bulk", "one big body", "MB/s"),
    )
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go, and what they ask for: `origin` is set for an HTTP proxy."""

    port: int
    host: str = "localhost"
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """`amount` is requests or gigabytes; `rate` is requests/s or MB/s."""

    amount: float
    rate: float
    errors: int = 0
    p99_ms: float | None = None


def run(workload: Workload, place: Place, seconds: int) -> Done:
    """Put the load on. Raises `Missing` without wrk, `DidNotWork` if nothing came back."""
    if not workload.connections:
        return fetch(place)
    command = [
        *(find("wrk"), "-t1", f"-c{workload.connections}", f"-d{seconds}s", "--timeout", "10s"),
        *("-s", str(SCRIPT), f"http://127.0.0.1:{place.port}/", "--"),
        *(f"{place.origin}/small", place.host, "keep-alive" if workload.keep_alive else "close"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise DidNotWork("wrk did not come to an end") from error
    return parse(done.stdout, done.stderr)


def parse(output: str, errors: str = "") -> Done:
    """wrk's results: the one line that wrk.lua prints among wrk's own."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise DidNotWork(f"wrk: {(errors or output).strip()[-200:]}")
    result = json.loads(lines[-1])
    return Done(
        amount=result["requests"],
        rate=result["requests"] / result["seconds"],
        errors=result["errors"],
        p99_ms=result["p99_ms"],
    )


def fetch(place: Place, path: str = "/big") -> Done:
    """Fetch one body and drop it. Raises `DidNotWork` unless all of it came."""
    started = time.perf_counter()
    got, size = 0, -1
    try:
        with socket.create_connection(("127.0.0.1", place.port), TIMEOUT) as connection:
            connection.sendall(
                f"GET {place.origin}{path} HTTP/1.1\r\nHost: {place.host}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            head, size = _head(connection)
            got = len(head)
            buffer = bytearray(BUFFER)
            while got < size and (count := connection.recv_into(buffer)):
                got += count
    except OSError as error:
        raise DidNotWork(f"port {place.port}: {error} after {got} octets") from error
    if got != size:
        raise DidNotWork(f"port {place.port}: {got} octets instead of {size}")
    seconds = time.perf_counter() - started
    return Done(amount=size / 1e9, rate=size / 1e6 / seconds)


def _head(connection: socket.socket) -> tuple[bytes, int]:
    """What came of the body with the head, and the body's size; -1 if it is not a 200."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(BUFFER)
        if not piece:
            return b"", -1
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:] if b": " in line)
    if b" 200 " not in head.splitlines()[0]:
        return body, -1
    return body, int(fields[b"content-length"])


def answers(place: Place, size: int) -> bool:
    """Whether /small comes, whole: what makes a contender ready."""
    try:
        return round(fetch(place, "/small").amount * 1e9) == size
    except DidNotWork:
        return False
