"""Pictures of what a person sees, for the docs: `make screenshots`.

    python -m screenshots FOLDER

A broker with agents that do something, the page in Chromium, and `whip top` in a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import click

from browser import Page, chromium
from terminal import terminal
from tunnel import agent_settings, authority, broker_settings, echo, running, service
from whip_core import Broker
from whip_core.caller import Caller
from whip_core.commands.top import HOME
from whip_core.errors import DialError
from whip_core.monitor import serving
from whip_core.operating import Listening, operating
from whip_core.settings import TLSFiles
from whip_core.status import Status

AGENTS = (
    ("web1", "shop.example", "80", {"zone": "eu-1", "version": "42"}),
    ("web2", "shop.example", "80", {"zone": "eu-2", "version": "42"}),
    ("web3", "shop.example", "80", {"zone": "eu-2", "version": "43", "canary": "true"}),
    ("db1", "shop.example", "5432", {"zone": "eu-1", "role": "primary"}),
    ("db2", "shop.example", "5432", {"zone": "eu-2", "role": "replica"}),
    ("search", "shop.example", "9200", {"zone": "eu-1"}),
    ("api1", "billing.example", "443", {"zone": "us-1"}),
    ("api2", "billing.example", "443", {"zone": "us-1"}),
    ("ci-runner", "lab.example", "22", {"team": "build"}),
)
CALLER = Caller(address=("10.1.2.3", 40_000), proxy_user="ada")


@asynccontextmanager
async def busy_broker() -> AsyncIterator[Broker]:
    """Agents that have had traffic, and still have some."""
    files = authority().server_files(["localhost"], ())
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(service(echo))
        settings = broker_settings(tls=files, ping_interval=0.15)
        broker = await stack.enter_async_context(Broker(settings))
        for hostname, domain, ports, labels in AGENTS:
            agent = await stack.enter_async_context(
                running(
                    agent_settings(
                        broker.control_port,
                        ports=f"{ports}={port}",
                        hostname=hostname,
                        domain=domain,
                        labels=labels,
                        tls=_files(domain),
                    )
                )
            )
            await agent.wait_registered()
        traffic = asyncio.get_running_loop().create_task(_traffic(broker))
        try:
            yield broker
        finally:
            traffic.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await traffic


def _files(domain: str) -> TLSFiles:
    return authority().client_files(f"*.{domain}")


async def _traffic(broker: Broker) -> None:
    writers = []
    for number in range(60):
        hostname, domain, ports, _ = AGENTS[number * number % len(AGENTS)]
        reader, writer = await broker.open_connection(
            f"{hostname}.{domain}" if number % 3 else domain, int(ports), caller=CALLER
        )
        writer.write(bytes(900 * (number % 17) ** 2 + 1))
        await reader.read(1)
        writers.append(writer)
        if number % 4:
            writers.pop(0).close()
    for name, port in (("web4.shop.example", 80), ("db1.shop.example", 5433)):
        with contextlib.suppress(DialError):
            await broker.open_connection(name, port, caller=CALLER)
    reader, writer = await broker.open_connection("web1.shop.example", 80, caller=CALLER)
    while True:
        writer.write(bytes(20_000))
        await reader.readexactly(20_000)
        await asyncio.sleep(0.05)


async def status_page(page: Page, address: str, folder: Path) -> None:
    await page.size(1440, 1000)
    await page.go(f"http://{address}/")
    await page.until("document.querySelectorAll('svg.spark').length === 9")
    await page.until(
        "[...document.querySelectorAll('svg.spark polyline')]"
        ".every(line => line.getAttribute('points').split(' ').length > 20)"
    )
    for scheme in ("light", "dark"):
        await page.prefer(scheme)
        await page.screenshot(folder / f"status-{scheme}.png")
    await page.prefer("light")
    await page.size(390, 844, phone=True)
    await page.until("getComputedStyle(document.querySelector('thead')).display === 'none'")
    await page.screenshot(folder / "status-phone.png")


async def top(page: Page, control_socket: Path, folder: Path) -> None:
    """What the terminal shows, drawn by the browser."""
    size = {"lines": 16, "columns": 146}
    command = ("top", f"--control-socket={control_socket}", "--interval=1", "--sort=-to_agent")
    async with terminal("whip", *command, **size) as screen:
        at = 0
        for _ in range(4):
            at = await screen.shows(HOME, after=at)
        text = screen.seen.split(HOME)[3]
        screen.type("q")
        await screen.ended()
    plain = click.unstyle(re.sub(r"\x1b\[[JK]", "", text)).replace("\r", "")
    lines = plain.split("\n")
    head = next(index for index, line in enumerate(lines) if line.startswith("NAME"))
    marked = [html.escape(line) for line in lines]
    marked[head] = f"<b>{marked[head]}</b>"
    body = (
        "<body style='margin:0;background:#16201d'><pre style='color:#dfe8e4;margin:16px;"
        f"font:14px/1.4 monospace'>{chr(10).join(marked)}</pre>"
    )
    await page.prefer("light")
    await page.size(1280, 320)
    await page.go("about:blank")
    await page.evaluate(f"document.documentElement.innerHTML = {body!r}")
    await page.screenshot(folder / "top.png")


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        control_socket = Path(name) / "control.sock"
        async with (
            busy_broker() as broker,
            operating(broker, Listening("", True, str(control_socket))),
            serving("127.0.0.1:0", Status(broker).routes(), chosen=True) as address,
            chromium(Path(name) / "profile") as page,
        ):
            assert address is not None
            await status_page(page, address, folder)
            await top(page, control_socket, folder)
    for path in sorted(folder.glob("*.png")):
        print(os.path.relpath(path))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
