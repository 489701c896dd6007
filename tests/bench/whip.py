"""whip's own processes, started as a user would: defaults everywhere, mutual TLS."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.contender import Contender
from bench.load import Place
from bench.processes import Program, find, free_ports, listens, running, wait_until
from whip_core.settings import TLSFiles
from whip_core.testing import Authority

DOMAIN = "testdom"
NAME = f"instance1.{DOMAIN}"
PORT = 80

FORWARD = "whip forward"
PROXY = "mitmproxy + whip"
STRAIGHT = "mitmproxy straight"


@functools.cache
def _authority(folder: Path) -> Authority:
    return Authority(folder / "pki")


@functools.cache
def broker_files(folder: Path) -> TLSFiles:
    return _authority(folder).server_files(("localhost",), ("127.0.0.1",))


@functools.cache
def agent_files(folder: Path) -> TLSFiles:
    return _authority(folder).client_files(f"*.{DOMAIN}")


def tls_options(files: TLSFiles) -> tuple[str, ...]:
    return (
        f"--tls-key-path={files.key}",
        f"--tls-cert-path={files.cert}",
        f"--tls-ca-cert-path={files.ca}",
    )


@dataclass(frozen=True)
class RunningBroker:
    """A process with a broker in it; `port` is its forward's, or its proxy's."""

    program: Program
    port: int
    control_port: int


@contextlib.contextmanager
def broker(folder: Path, kind: str, *options: str) -> Iterator[RunningBroker]:
    """Run `whip forward` or `whip proxy` until the block ends; ready for agents."""
    port, control_port, reverse_port = free_ports(3)
    own = {
        "forward": (f"{port}:{NAME}:{PORT}",),
        "proxy": (f"--proxy-listen-port={port}",),
    }[kind]
    with running(
        f"whip-{kind}-{port}",
        find("whip"),
        kind,
        *own,
        "--whip-external-tcp-address=localhost",
        "--whip-listen-host=127.0.0.1",
        "--max-agents-per-identity=0",  # a fleet's agents share one certificate
        f"--whip-tcp-listen-port={reverse_port}",
        f"--whip-grpc-listen-port={control_port}",
        "--metrics-listen=",
        *tls_options(broker_files(folder)),
        *options,
        folder=folder,
    ) as program:
        wait_until(lambda: listens(control_port) and listens(port), f"whip {kind} listens", program)
        yield RunningBroker(program, port, control_port)


@contextlib.contextmanager
def agent(folder: Path, control_port: int, service_port: int) -> Iterator[Program]:
    """Run `whip client` for `NAME` until the block ends; not waited for."""
    with running(
        f"whip-client-{control_port}",
        find("whip"),
        "client",
        "--hostname=instance1",
        f"--domain={DOMAIN}",
        f"--ports={PORT}={service_port}",
        "--metrics-listen=",
        *tls_options(agent_files(folder)),
        f"localhost:{control_port}",
        folder=folder,
    ) as program:
        yield program


@contextlib.contextmanager
def forward(folder: Path, service_port: int) -> Iterator[tuple[Contender, ...]]:
    with (
        broker(folder, "forward") as running_broker,
        agent(folder, running_broker.control_port, service_port) as client,
    ):
        contender = Contender(
            FORWARD, Place(running_broker.port), {"broker": running_broker.program, "agent": client}
        )
        yield (contender.wait_ready(),)


@contextlib.contextmanager
def proxy(folder: Path, service_port: int) -> Iterator[tuple[Contender, ...]]:
    """One `whip proxy`, and two ways through it: over the tunnel, and straight to nginx."""
    with (
        broker(folder, "proxy", "--fallback=true") as running_broker,
        agent(folder, running_broker.control_port, service_port) as client,
    ):
        port, program = running_broker.port, running_broker.program
        tunnel = Place(port, NAME, f"http://{NAME}")
        straight = Place(port, "127.0.0.1", f"http://127.0.0.1:{service_port}")
        yield (
            Contender(PROXY, tunnel, {"mitmproxy": program, "agent": client}).wait_ready(),
            Contender(STRAIGHT, straight, {"mitmproxy": program}).wait_ready(),
        )
