"""mitmproxy's console with whip in it, in a terminal, and instances to look at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mitm import curl
from processes import free_ports
from terminal import Terminal, terminal
from tunnel import Handler, agent_settings, client_files, running, server_files, service


@dataclass(frozen=True)
class Console:
    screen: Terminal
    port: int

    async def get(self, url: str, *arguments: str) -> str:
        """What the proxy answers."""
        proxy = f"http://127.0.0.1:{self.port}"
        return (await curl("--proxy", proxy, *arguments, url)).output

    def command(self, text: str) -> None:
        """Type it at the prompt."""
        self.screen.type(f":{text}")
        self.screen.press("enter")


@asynccontextmanager
async def console(
    home: Path,
    services: Mapping[str, Handler],
    *arguments: str,
    lines: int = 30,
    columns: int = 120,
) -> AsyncIterator[Console]:
    """`services` says what each `hostname.domain` serves. mitmproxy's files are in `home`."""
    port, grpc_port, tcp_port = free_ports(3)
    files = server_files("localhost")
    command = (
        *("proxy", "--ui=console", "--whip-external-tcp-address=localhost"),
        *(f"--proxy-listen-port={port}", f"--whip-grpc-listen-port={grpc_port}"),
        *(f"--whip-tcp-listen-port={tcp_port}", "--metrics-listen=", "--control-socket="),
        *(f"--tls-key-path={files.key}", f"--tls-cert-path={files.cert}"),
        *(f"--tls-ca-cert-path={files.ca}", *arguments),
    )
    env = {"HOME": str(home), "LC_ALL": "C.UTF-8"}
    async with AsyncExitStack() as stack:
        screen = await stack.enter_async_context(
            terminal("whip", *command, lines=lines, columns=columns, env=env)
        )
        await screen.displays("[0/0]", f":{port}]")
        for name, handler in services.items():
            hostname, _, domain = name.partition(".")
            settings = agent_settings(
                grpc_port,
                ports=f"80={await stack.enter_async_context(service(handler))}",
                hostname=hostname,
                domain=domain,
                tls=client_files(f"*.{domain}"),
            )
            agent = await stack.enter_async_context(running(settings))
            await agent.wait_registered()
        yield Console(screen, port)
