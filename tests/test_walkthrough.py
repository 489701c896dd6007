"""The walk-through of the README, each command a process in one new directory, over mTLS.

Only the ports are others, so that it can run beside anything: all are given as options.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from processes import Process, free_ports, output_of, started
from programs import needs_program, path_of
from servers import nginx
from tunnel import run

IN_A_TERMINAL = (
    *(sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"),
    *("sh", "-c", 'stty rows 24 columns 80; exec "$@"', "sh"),
)


class Walk:
    """The directory, the ports, and the commands as they stand in the README."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proxy_port, self.tcp_port, self.grpc_port = free_ports(3)
        # mitmproxy keeps a CA of its own in the home directory.
        self._env = {"HOME": str(folder), "TERM": "xterm"}

    async def make_certificates(self) -> None:
        for arguments in (
            ("genselfsignedca",),
            ("createandsign", "server"),
            ("createandsign", "client", "--hostname=*", "--domain=testdom"),
        ):
            await output_of("whiphack", "pki", *arguments, cwd=self.folder)

    @asynccontextmanager
    async def client(self, service_port: int) -> AsyncIterator[Process]:
        async with started(
            *("whip", "client", "--hostname=instance1", "--domain=testdom", "--tls=true"),
            *("--tls-key-path=client-key.pem", "--tls-cert-path=client-cert.pem"),
            *("--tls-ca-cert-path=ca-cert.pem", f"--ports={service_port}"),
            *("--metrics-listen=", f"localhost:{self.grpc_port}"),
            cwd=self.folder,
        ) as process:
            yield process

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[Process]:
        async with started(
            *("whip", "proxy", f"--proxy-listen-port={self.proxy_port}"),
            *("--whip-external-tcp-address=localhost", f"--whip-external-tcp-port={self.tcp_port}"),
            *("--tls=true", "--tls-key-path=server-key.pem", "--tls-cert-path=server-cert.pem"),
            *("--tls-ca-cert-path=ca-cert.pem", f"--whip-grpc-listen-port={self.grpc_port}"),
            *(f"--whip-tcp-listen-port={self.tcp_port}", "--metrics-listen="),
            cwd=self.folder,
            env=self._env,
        ) as process:
            yield process

    @asynccontextmanager
    async def mitmproxy(self, tool: str) -> AsyncIterator[Process]:
        """One of mitmproxy's own programs with the addon."""
        addon = await output_of("whip", "addon-path")
        options = {
            "whip_external_tcp_address": "localhost",
            "whip_tcp_listen_port": self.tcp_port,
            "whip_grpc_listen_port": self.grpc_port,
            "whip_tls_key_path": "server-key.pem",
            "whip_tls_cert_path": "server-cert.pem",
            "whip_tls_ca_cert_path": "ca-cert.pem",
            "whip_metrics_listen": "",
        }
        command = [path_of(tool), "-s", addon, "--listen-port", str(self.proxy_port)]
        command += [part for name in options for part in ("--set", f"{name}={options[name]}")]
        if tool == "mitmweb":
            [port] = free_ports(1)
            command += ["--no-web-open-browser", "--web-port", str(port)]
        if tool == "mitmproxy":
            command = [*IN_A_TERMINAL, *command]
        async with started(*command, cwd=self.folder, env=self._env) as process:
            yield process

    async def curl(self) -> str:
        return await output_of(
            *("curl", "--silent", "--show-error", "--proxy", f"localhost:{self.proxy_port}"),
            "instance1.testdom/",
        )


@asynccontextmanager
async def walk_through(folder: Path) -> AsyncIterator[tuple[Walk, int]]:
    walk = Walk(folder)
    await walk.make_certificates()
    async with nginx(folder) as (port, _):
        yield walk, port


@needs_program("nginx", "curl", "whip", "whiphack", "mitmdump")
@pytest.mark.parametrize("first", ["client", "proxy"])
def test_the_walk_through_works_in_either_order(tmp_path: Path, first: str) -> None:
    async def main() -> None:
        async with walk_through(tmp_path) as (walk, port), contextlib.AsyncExitStack() as stack:
            if first == "client":
                client = await stack.enter_async_context(walk.client(port))
                await client.says("no broker at")
                await stack.enter_async_context(walk.proxy())
            else:
                proxy = await stack.enter_async_context(walk.proxy())
                await proxy.says("agents register at port")
                client = await stack.enter_async_context(walk.client(port))
            await client.says("registered instance1.testdom")
            assert await walk.curl() == "It works."

    run(main(), patience=100)


@needs_program("nginx", "curl", "whip", "whiphack", "mitmdump")
@pytest.mark.parametrize("tool", ["mitmdump", "mitmproxy", "mitmweb"])
def test_the_same_routing_comes_with_each_of_mitmproxys_programs(tmp_path: Path, tool: str) -> None:
    async def main() -> None:
        async with (
            walk_through(tmp_path) as (walk, port),
            walk.mitmproxy(tool) as proxy,
            walk.client(port) as client,
        ):
            registered = asyncio.get_running_loop().create_task(
                client.says("registered instance1.testdom")
            )
            ended = asyncio.get_running_loop().create_task(proxy.ended())
            await asyncio.wait([registered, ended], return_when=asyncio.FIRST_COMPLETED)
            assert not ended.done(), str(proxy)
            ended.cancel()
            await registered
            assert await walk.curl() == "It works."

    run(main(), patience=100)
