"""`kill -9` in the middle of a transfer: whoever is left sees an error, never an end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from processes import Process, free_ports, started
from tunnel import client_files, run, server_files

ENOUGH = 4 << 20
"""Octets after which a transfer is under way for certain, at every hop."""
NOTICED_WITHIN = 5.0
"""Seconds that the other end may take to see it (issue of the data plane)."""

SERVICE = """
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
print("port", server.getsockname()[1])
def serve(connection):
    try:
        direction = connection.recv(4)
        if direction == b"down":
            while True:
                connection.sendall(bytes(65536))
        got, enough = 0, int(sys.argv[1])
        while data := connection.recv(65536):
            if got < enough <= got + len(data):
                if direction == b"keep":
                    connection.recv(1, socket.MSG_PEEK)
                    print("under way")
                    threading.Event().wait()
                print("under way")
            got += len(data)
        print("the client ended")
    except OSError as error:
        print("the client broke", error)
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""


@asynccontextmanager
async def chain() -> AsyncIterator[tuple[dict[str, Process], int]]:
    """Service, agent and broker as processes, and the port of the broker's forward."""
    broker_files, agent_files = server_files("localhost"), client_files()
    port, grpc_port, tcp_port = free_ports(3)
    async with (
        started(sys.executable, "-c", SERVICE, str(ENOUGH)) as service,
        started(
            *("whip", "forward", f"{port}:instance1.testdom:80", "--wait=30"),
            *("--whip-external-tcp-address=localhost", "--whip-listen-host=127.0.0.1"),
            *(f"--whip-tcp-listen-port={tcp_port}", f"--whip-grpc-listen-port={grpc_port}"),
            *(f"--tls-key-path={broker_files.key}", f"--tls-cert-path={broker_files.cert}"),
            *(f"--tls-ca-cert-path={broker_files.ca}", "--metrics-listen="),
        ) as broker,
    ):
        await broker.says("forwarding")
        service_port = (await service.says("port")).split()[1]
        async with started(
            *("whip", "client", "--hostname=instance1", "--domain=testdom"),
            *(f"--ports=80={service_port}", f"--tls-key-path={agent_files.key}"),
            *(f"--tls-cert-path={agent_files.cert}", f"--tls-ca-cert-path={agent_files.ca}"),
            *("--metrics-listen=", f"localhost:{grpc_port}"),
        ) as agent:
            yield {"service": service, "broker": broker, "agent": agent}, port


async def pump(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(65536))
        await writer.drain()


# A service that is killed while it sends has its kernel send FIN: no receiver can tell that
# from an end. While it receives, what it has not read yet makes it a reset: so it reads no more.
@pytest.mark.parametrize(
    ("victim", "direction"),
    [("agent", "down"), ("broker", "down"), ("agent", "up"), ("broker", "up"), ("service", "keep")],
)
def test_a_transfer_whose_part_is_killed_breaks_off_at_the_other_end(
    victim: str, direction: str
) -> None:
    async def main() -> None:
        async with chain() as (processes, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{direction:4}".encode())
            pumping: asyncio.Task[None] | None = None
            if direction == "down":
                await reader.readexactly(ENOUGH)
            else:
                pumping = asyncio.get_running_loop().create_task(pump(writer))
                await processes["service"].says("under way")
            processes[victim].signal(signal.SIGKILL)
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(NOTICED_WITHIN):
                    while await reader.read(1 << 20):
                        pass
            if pumping is not None:
                pumping.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await pumping
            if victim != "service":
                async with asyncio.timeout(NOTICED_WITHIN):
                    await processes["service"].says("the client broke")
            writer.close()

    run(main())
