"""The status page in a real browser: what it shows without being loaded again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from browser import Page, chromium, needs_chromium
from mitm import FakeBroker, curl, proxy
from test_status_api import view
from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    echo,
    registration,
    run,
    running,
    scripted,
    service,
)
from whip_core import Broker, control, status
from whip_core.errors import DialError, UnknownName
from whip_core.monitor import serving
from whip_core.status import Status
from whip_core.testing.agent import ScriptedAgent

pytestmark = [needs_chromium, pytest.mark.timeout(180)]

NAMES = (
    "[...document.querySelectorAll('#agents tbody tr')]"
    ".map(row => row.children[0].textContent.trim())"
)
MARKUP = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "TICK", 0.05)


@asynccontextmanager
async def page_of(broker: Any, folder: Path) -> AsyncIterator[Page]:
    """The broker's page, open; it complains of nothing and asks nobody else."""
    async with (
        serving("127.0.0.1:0", Status(broker).routes(), chosen=True) as address,
        chromium(folder / "profile") as page,
    ):
        await page.size(1280, 900)
        await page.go(f"http://{address}/")
        await page.until("document.getElementById('connection').dataset.state === 'live'")
        yield page
        assert page.complaints == []
        assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {address}


def cell(column: str, row: int = 0) -> str:
    return (
        f"document.querySelectorAll('#agents tbody tr')[{row}]"
        f".querySelector('[data-label=\"{column}\"]').textContent"
    )


def range_is(first: str, rest: str) -> str:
    """Whether those rows are shown: "1" and "50 of 99"."""
    return f"document.getElementById('range').textContent === '{first}\u2013{rest}'"


def test_an_agent_is_seen_to_join_carry_traffic_and_leave(tmp_path: Path) -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings(ping_interval=0.05), plugins=[watch]) as broker,
            page_of(broker, tmp_path) as page,
        ):
            await page.until("!document.getElementById('none').hidden")
            await page.evaluate("window.marker = 'not loaded again'")
            settings = agent_settings(
                broker.control_port, ports=f"80={port}", labels={"zone": "eu"}
            )
            async with running(settings):
                assert await page.until(f"{NAMES}.length && {NAMES}") == ["instance1.testdom"]
                assert await page.evaluate(cell("Labels")) == "zone=eu"
                reader, writer = await broker.open_connection("testdom", 80)
                writer.write(bytes(12_345))
                await reader.readexactly(12_345)
                await page.until(f"{cell('Streams')} === '1'")
                assert await page.until(f"{cell('To agent')} === '12.3 kB' && 'yes'")
                assert await page.until(f"{cell('From agent')} === '12.3 kB' && 'yes'")
                await page.until("document.querySelector('svg.spark polyline')")
                with pytest.raises(UnknownName):
                    await broker.open_connection("instance2.testdom", 80)
                await page.until(
                    "document.getElementById('failures').textContent.includes('instance2.testdom')"
                )
                await page.until(
                    "document.getElementById('dials').textContent.includes('testdom:80')"
                )
                writer.close()
                await writer.wait_closed()
                await page.until(f"{cell('Streams')} === '0'")
            await page.until(f"{NAMES}.length === 0")
            await page.until("document.getElementById('comings').textContent.includes(' left: ')")
            assert await page.evaluate("window.marker") == "not loaded again"

    run(main())


def test_hostile_texts_are_shown_and_do_nothing(tmp_path: Path) -> None:
    labels = {MARKUP: "value", "k": "\"'&</td>" + "x" * 240}
    hello = registration(labels=labels, software_version="\x1b[2J\u202e" + MARKUP + "v" * 10_000)

    async def main() -> None:
        async with (
            Broker(broker_settings()) as broker,
            page_of(broker, tmp_path) as page,
            scripted(broker, hello) as agent,
        ):
            await agent.expect(control.Registered)
            await page.until(f"{NAMES}.length")
            assert MARKUP in await page.evaluate(cell("Labels"))
            assert MARKUP in await page.evaluate(cell("Version"))
            await refused(agent, broker)
            await page.until("document.querySelector('#failures .why')")
            assert MARKUP in await page.evaluate(
                "document.querySelector('#failures .why').textContent"
            )
            assert await page.evaluate("window.hacked") is None
            assert await page.evaluate("document.querySelectorAll('img, main script').length") == 0
            for width in (1280, 390):
                await page.size(width, 800, phone=width == 390)
                await page.until(f"innerWidth === {width}")
                assert await page.evaluate("document.documentElement.scrollWidth") <= width

    async def refused(agent: ScriptedAgent, broker: Broker) -> None:
        """A dial that the agent refuses, with markup for a reason."""
        dial = asyncio.get_running_loop().create_task(broker.open_connection("testdom", 80))
        request = await agent.expect(control.Connect)
        await agent.send(control.ConnectFailed(request.connection_id, MARKUP))
        with pytest.raises(DialError):
            await dial

    run(main())


def test_five_thousand_agents_are_searched_sorted_and_turned_through_by_keyboard(
    tmp_path: Path,
) -> None:
    broker = FakeBroker(agents=[view(number) for number in range(5000)])

    async def main() -> None:
        async with page_of(broker, tmp_path) as page:
            await page.until(range_is("1", "50 of 5,000"))
            await page.press("]")
            await page.until(range_is("51", "100 of 5,000"))
            assert (await page.evaluate(NAMES))[0] == "i0050.testdom"
            await page.press("[")
            await page.until(range_is("1", "50 of 5,000"))
            await page.press("/")
            await page.type("zone=eu i00")
            await page.until(range_is("1", "50 of 50 (5,000 in all)"))
            await page.press("Escape")
            await page.until(range_is("1", "50 of 5,000"))
            await page.evaluate(
                "[...document.querySelectorAll('th button')]"
                ".find(button => button.textContent === 'Streams').focus()"
            )
            await page.press("Enter")
            await page.until("document.querySelector('[aria-sort=ascending] button')")
            await page.press("Enter")
            await page.until("document.querySelector('[aria-sort=descending] button')")
            await page.until(f"{NAMES}[0] === 'i0006.testdom'")
            # Those on the last page leave while somebody looks at it.
            await page.evaluate("sortBy('name')")
            await page.evaluate("show({sort: 'name', offset: 4950})")
            await page.until(range_is("4,951", "5,000 of 5,000"))
            del broker.agents[100:]
            await page.until(range_is("51", "100 of 100"))

    run(main())


def test_light_and_dark_follow_the_system_and_a_phone_gets_cards(tmp_path: Path) -> None:
    broker = FakeBroker(agents=[view(number) for number in range(3)])

    async def main() -> None:
        async with page_of(broker, tmp_path) as page:
            await page.until(f"{NAMES}.length === 3")
            seen = []
            for scheme in ("light", "dark"):
                await page.prefer(scheme)
                seen.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert len(set(seen)) == 2
            await page.size(390, 844, phone=True)
            await page.until("getComputedStyle(document.querySelector('thead')).display === 'none'")
            assert await page.evaluate("document.documentElement.scrollWidth") == 390
            assert await page.evaluate("!!document.getElementById('sort').offsetParent")

    run(main())


def test_a_broker_that_goes_away_is_told_and_one_that_comes_back_is_shown(tmp_path: Path) -> None:
    broker = FakeBroker(agents=[view(1)])
    state = "document.getElementById('connection').dataset.state"

    async def main() -> None:
        async with chromium(tmp_path / "profile") as page:
            routes = Status(broker).routes()
            async with serving("127.0.0.1:0", routes, chosen=True) as address:
                assert address is not None
                await page.go(f"http://{address}/")
                await page.until(f"{NAMES}.length === 1")
            await page.until(f"{state} === 'lost'")
            broker.agents.append(view(2))
            async with serving(address, routes, chosen=True):
                await page.until(f"{state} === 'live' && {NAMES}.length === 2")

    run(main())


# Through the proxy


def test_the_page_is_at_whip_internal_for_clients_of_the_proxy(tmp_path: Path) -> None:
    broker = FakeBroker(agents=[view(1)])

    async def main() -> None:
        async with (
            proxy(broker) as p,
            chromium(tmp_path / "profile", f"--proxy-server=127.0.0.1:{p.port}") as page,
        ):
            await page.go("http://whip.internal/")
            await page.until(f"{NAMES}.length === 1")
            broker.agents.append(view(2))
            await page.until(f"{NAMES}.length === 2")
            assert page.complaints == []
            told = await curl("--proxy", p.url, "http://Whip.Internal./api/agents?limit=1")
            assert json.loads(told.output)["matching"] == 2
            # The browser has asked for more, on its own account; nobody for this name.
            assert "whip.internal" not in {host.lower() for host, _, _ in broker.dials}

    run(main())


def test_whip_internal_never_leaves_by_another_way() -> None:
    """Not to an upstream proxy, not to DNS; and what is asked wrong says where the page is."""

    async def main() -> None:
        async with proxy(FakeBroker()) as p:
            refused = await curl("--proxy", p.url, "-k", "-v", "https://whip.internal/")
            assert refused.status != 0
            told = await curl("--proxy", p.url, "http://whip.internal:81/")
            assert "the status page is http://whip.internal/" in told.output
        async with proxy(FakeBroker(), proxyauth="me:secret") as p:
            told = await curl("--proxy", p.url, "-o", "-", "-D", "-", "http://whip.internal/")
            assert told.output.startswith("HTTP/1.1 407 ")
        async with proxy(FakeBroker(), mode=("upstream:http://127.0.0.1:9",)) as p:
            told = await curl("--proxy", p.url, "http://whip.internal/")
            assert "is not sent to the upstream proxy" in told.output

    run(main())
