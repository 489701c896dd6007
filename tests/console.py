"""whip inside one of mitmproxy's screens, and instances to look at."""

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
class Ports:
    proxy: int
    grpc: int
    tcp: int


def command(ui: str, ports: Ports) -> tuple[str, ...]:
    """A proxy with that screen, for the shell."""
    files = server_files("localhost")
    return (
        *("whip", "proxy", f"--ui={ui}", "--whip-external-tcp-address=localhost"),
        *(f"--proxy-listen-port={ports.proxy}", f"--whip-grpc-listen-port={ports.grpc}"),
        *(f"--whip-tcp-listen-port={ports.tcp}", "--metrics-listen=", "--control-socket="),
        *(f"--tls-key-path={files.key}", f"--tls-cert-path={files.cert}"),
        f"--tls-ca-cert-path={files.ca}",
    )


@asynccontextmanager
async def instances(ports: Ports, services: Mapping[str, Handler]) -> AsyncIterator[None]:
    """`services` says what each `hostname.domain` serves, on port 80."""
    async with AsyncExitStack() as stack:
        for name, handler in services.items():
            hostname, _, domain = name.partition(".")
            settings = agent_settings(
                ports.grpc,
                ports=f"80={await stack.enter_async_context(service(handler))}",
                hostname=hostname,
                domain=domain,
                tls=client_files(f"*.{domain}"),
            )
            agent = await stack.enter_async_context(running(settings))
            await agent.wait_registered()
        yield


async def get(ports: Ports, url: str, *arguments: str) -> str:
    """What the proxy answers."""
    return (await curl("--proxy", f"http://127.0.0.1:{ports.proxy}", *arguments, url)).output


@dataclass(frozen=True)
class Console:
    screen: Terminal
    ports: Ports

    async def get(self, url: str) -> str:
        return await get(self.ports, url)

    def command(self, text: str) -> None:
        """Type it at the prompt."""
        self.screen.type(f":{text}")
        self.screen.press("enter")


@asynccontextmanager
async def console(
    home: Path,
    services: Mapping[str, Handler],
    *,
    ports: Ports | None = None,
    lines: int = 30,
    columns: int = 120,
) -> AsyncIterator[Console]:
    """mitmproxy's console in a terminal. Its own files are in `home`."""
    ports = ports or Ports(*free_ports(3))
    screen = terminal(
        *command("console", ports),
        lines=lines,
        columns=columns,
        env={"HOME": str(home), "LC_ALL": "C.UTF-8"},
    )
    async with screen as shown:
        await shown.displays("[0/0]", f":{ports.proxy}]")
        async with instances(ports, services):
            yield Console(shown, ports)
