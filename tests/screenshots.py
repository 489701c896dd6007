"""Pictures of what a person sees, for the docs: `make screenshots`.

    python -m screenshots FOLDER

A broker with agents that do something: its page in Chromium, `whip top` in a terminal. And
mitmproxy's two screens with whip in them, the console in a terminal and mitmweb in Chromium.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from PIL import Image

from browser import Page, chromium
from console import Console, Ports, command, console, get, instances
from mitm import answering
from processes import free_ports, is_free, started
from screen_html import page_of
from terminal import Terminal, terminal
from tunnel import (
    Handler,
    agent_settings,
    authority,
    broker_settings,
    echo,
    running,
    saying,
    service,
)
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
USUAL = (8080, 50051, 8000)
"""The ports that a reader has too; others where one is taken."""
CLICK = "[...document.querySelectorAll('%s')].find(a => a.innerText.includes('%s'))?.click() ?? 1"
PATIENCE = 200.0
"""Seconds until something will never be seen."""
SIDES = ("width", "height")
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


async def draw(page: Page, screen: Terminal, path: Path) -> None:
    """What the terminal shows, drawn by the browser."""
    await page.go("about:blank")
    await page.evaluate(f"document.body.outerHTML = {json.dumps(page_of(screen.screen))}")
    shown = "document.getElementById('terminal').getBoundingClientRect()"
    await page.size(*[await page.evaluate(f"Math.ceil({shown}.{side})") for side in SIDES])
    await page.screenshot(path)


async def top(page: Page, control_socket: Path, folder: Path) -> None:
    arguments = ("top", f"--control-socket={control_socket}", "--interval=1", "--sort=-to_agent")
    async with terminal("whip", *arguments, lines=15, columns=146) as screen:
        at = 0
        for _ in range(4):  # the first has no rates yet
            at = await screen.shows(HOME, after=at)
        await draw(page, screen, folder / "top.png")


def shop() -> dict[str, Handler]:
    """Four instances, of which one has another version; and one that speaks no HTTP."""

    def stock(version: int, **more: object) -> Handler:
        body = json.dumps({"total": "41.70", **more}).encode()
        return answering(body, "content-type: application/json", f"x-version: {version}")

    return {
        "web1.shop.example": stock(42),
        "web2.shop.example": stock(42),
        "web3.shop.example": stock(43, total="41.7"),
        "web4.shop.example": stock(42),
        "mail.lab.example": saying(b"220 this is no web server\r\n"),
    }


async def some_requests(ports: Ports) -> None:
    for host, path, *arguments in (
        ("web1", "cart"),
        ("web2", "cart/items?page=2", "--data", '{"item": 17, "count": 2}'),
        ("web3", "cart"),
        ("web5", "cart"),
    ):
        await get(ports, f"http://{host}.shop.example/{path}", *arguments)
    await get(ports, "http://mail.lab.example/")


async def mitmproxy_console(page: Page, ports: Ports, home: Path, folder: Path) -> None:
    async with console(home, shop(), ports=ports, lines=36, columns=112) as it:
        screen = it.screen
        await some_requests(ports)
        await screen.displays("[1/5]", "Quit")
        screen.press("enter")
        await screen.displays("Flow Details")
        screen.type("ll")
        await screen.displays("whip.certificate", "whip.reused", "Next flow")
        await draw(page, screen, folder / "console-flow.png")
        screen.type("q")
        await screen.displays("[1/5]", "Flows", without="Flow Details")
        await misbehaving(it)
        await draw(page, screen, folder / "console-across.png")


async def misbehaving(it: Console) -> None:
    """One instance with a fault, and a request to all of them."""
    it.command("whip.fault web2.shop.example status=503 300")
    await it.screen.displays("FAULT web2.shop.example: status 503, ")
    it.command("whip.replay.across @focus shop.example")
    await it.screen.displays("not reached", "web4.shop.example  200")


async def mitmweb(page: Page, ports: Ports, home: Path, folder: Path) -> None:
    [web_port] = free_ports(1)
    options = ("--", "--set=web_open_browser=false", f"--set=web_port={web_port}")
    async with started(*command("web", ports), *options, env={"HOME": str(home)}) as process:
        line = await process.says("Web server listening at http")
        address = line[line.index("http") :]  # with a token, from mitmproxy 12 on
        async with instances(ports, shop()):
            await some_requests(ports)
            await page.size(1280, 560)
            await page.go(address)
            await page.until("document.querySelectorAll('.flow-table tbody tr').length >= 5")
            await page.evaluate(CLICK % (".flow-table tbody tr", "web1.shop.example/cart"))
            await page.until(CLICK % (".nav-tabs a", "Comment"))
            await page.until("document.body.innerText.includes('whip: web1.shop.example')")
            await page.screenshot(folder / "mitmweb.png")


def shrink(path: Path) -> None:
    """As many colours as a screen has: a third of the size, and nobody sees it."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


async def main(folder: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        await pictures(folder)


async def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        control_socket = Path(name) / "control.sock"
        ports = Ports(*(USUAL if all(map(is_free, USUAL)) else free_ports(3)))
        async with chromium(Path(name) / "profile") as page:
            async with (
                busy_broker() as broker,
                operating(broker, Listening("", True, str(control_socket))),
                serving("127.0.0.1:0", Status(broker).routes(), chosen=True) as address,
            ):
                assert address is not None
                await status_page(page, address, folder)
                await page.prefer("light")
                await top(page, control_socket, folder)
            await mitmproxy_console(page, ports, Path(name), folder)
            await mitmweb(page, ports, Path(name), folder)
    for path in sorted(folder.glob("*.png")):
        if path.name != "bench.png":
            shrink(path)
            print(os.path.relpath(path), path.stat().st_size)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
