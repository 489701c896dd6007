"""mitmproxy in transparent mode: connections that the kernel redirects to it, on their own hosts.

The client knows an address and no proxy. Its route leads over the proxy's host, where a rule
of nftables brings the connections to mitmproxy, which asks the kernel where they were going.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from namespaces import Host, add_address, add_route, needs_redirects, network, redirect
from processes import Process, started
from programs import needs_program
from tunnel import echo, run

pytestmark = [pytest.mark.once, needs_program("ip", "nft"), needs_redirects]

SERVICE, NAMED, UNKNOWN = "10.99.0.1", "10.99.0.2", "10.99.0.3"
"""Addresses behind the proxy: the service's own, one that stands for a name, one of nobody."""
PORT = 5432
PATIENCE = 40.0

# What an operator loads who wants names behind addresses: whip has only names.
NAMES = f"""
def server_connect(data):
    if data.server.address == ("{NAMED}", {PORT}):
        data.server.address = ("db1.testdom", {PORT})
"""


async def echo_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await echo(reader, writer)
    writer.close()


@dataclass
class World:
    proxy: Process
    client: Host

    async def connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = self.client.socket(socket.SOCK_STREAM, self.client.ip4, 0)
        await asyncio.get_running_loop().sock_connect(sock, (address, PORT))
        return await asyncio.open_connection(sock=sock)

    async def echoed(self, address: str, host: str) -> None:
        """Both directions carry once handed to the relay, and end separately."""
        reader, writer = await self.connect(address)
        data = os.urandom(1_000_000)
        writer.write(data[:1])
        await self.proxy.says(f"passthrough to {host}:{PORT}: handed to the relay")
        writer.write(data[1:])
        writer.write_eof()
        assert await reader.read(-1) == data
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def world(folder: Path, *options: str) -> AsyncIterator[World]:
    """A client, a proxy in its way with an agent beside it, and an echo behind."""
    script = folder / "names.py"
    script.write_text(NAMES)
    async with AsyncExitStack() as stack:
        net = stack.enter_context(network())
        client, proxy, service = net.host(), net.host(), net.host()
        add_address(service, SERVICE)
        add_route(client, "10.99.0.0/24", proxy)
        add_route(proxy, f"{SERVICE}/32", service)
        redirect(proxy, PORT, 8080)
        sock = service.socket(socket.SOCK_STREAM, SERVICE, PORT)
        await stack.enter_async_context(await asyncio.start_server(echo_and_hang_up, sock=sock))
        mitmdump = await stack.enter_async_context(
            started(
                *(*proxy.command("whip"), "mitmdump", "-s", script, "--mode", "transparent"),
                *("--set", "whip_tls=false", "--set", "whip_metrics_listen="),
                *("--set", "whip_external_tcp_address=localhost"),
                *(argument for option in options for argument in ("--set", option)),
                env={"HOME": str(folder)},
            )
        )
        await mitmdump.says("listening at *:8080")
        await stack.enter_async_context(
            started(
                *(*proxy.command("whip"), "client", "--tls=false", "--metrics-listen="),
                *("--hostname=db1", "--domain=testdom", f"--ports={PORT}={SERVICE}:{PORT}"),
                "localhost:50051",
            )
        )
        await mitmdump.says("db1.testdom")
        yield World(mitmdump, client)


def test_addresses_and_the_names_that_a_script_gives_them_are_handed_to_the_relay(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with world(
            tmp_path,
            "whip_fallback=true",
            f"whip_passthrough={SERVICE}:{PORT}",
            f"whip_passthrough=*.testdom:{PORT}",
        ) as here:
            for address, host in ((SERVICE, SERVICE), (NAMED, "db1.testdom")):
                await here.echoed(address, host)
                await here.proxy.says(
                    f"passthrough to {host}:{PORT}: closed, 1000000 bytes to it, 1000000 back"
                )

    run(main(), patience=PATIENCE)


def test_an_address_that_nobody_gives_a_name_never_leaves(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, f"whip_passthrough={UNKNOWN}") as here:
            for address in (SERVICE, UNKNOWN):
                reader, writer = await here.connect(address)
                writer.write(b"hello")
                assert await reader.read() == b""
                writer.close()
                await here.proxy.says(f"{address}:{PORT}: whip reaches names, not addresses")

    run(main(), patience=PATIENCE)
