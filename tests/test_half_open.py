"""Thousands of connections that say nothing: whoever comes after them is served."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from processes import free_ports, started
from tunnel import agent_settings, client_files, run, running, server_files

WANTED = 10_000
SPARE = 1_000
"""Descriptors for everything else in this process."""


@pytest.fixture
def descriptors() -> Iterator[int]:
    """As many as this process may have, which the broker started by it may have too."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


async def flood(port: int, count: int) -> list[socket.socket]:
    connections = []
    for number in range(count):
        connection = socket.socket()
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.connect(("127.0.0.1", port))
        connections.append(connection)
        if number % 100 == 0:
            await asyncio.sleep(0)
    return connections


@pytest.mark.parametrize("port", ["control", "reverse"])
def test_ten_thousand_half_open_connections_end_nothing(port: str, descriptors: int) -> None:
    count = min(WANTED, descriptors - SPARE)
    control_port, reverse_port = free_ports(2)
    files = server_files("localhost")

    async def main() -> None:
        async with started(
            *("whip", "forward", "0:a.testdom:80", "--metrics-listen=", "--control-socket="),
            *("--whip-external-tcp-address=localhost", "--whip-listen-host=127.0.0.1"),
            *(f"--whip-grpc-listen-port={control_port}", f"--whip-tcp-listen-port={reverse_port}"),
            *(f"--tls-key-path={files.key}", f"--tls-cert-path={files.cert}"),
            f"--tls-ca-cert-path={files.ca}",
        ) as broker:
            await broker.says("forwarding")
            connections = await flood(
                {"control": control_port, "reverse": reverse_port}[port], count
            )
            async with running(
                agent_settings(control_port, ports="80=1", tls=client_files())
            ) as agent:
                if port == "control":
                    for connection in connections:
                        connection.close()
                await agent.wait_registered()
            for connection in connections:
                connection.close()
            async with running(
                agent_settings(control_port, ports="80=1", tls=client_files())
            ) as agent:
                await agent.wait_registered()

    run(main())
