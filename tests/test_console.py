"""whip in mitmproxy's console: what a person types there, and what is to be seen then."""

from __future__ import annotations

from pathlib import Path

from console import Console, console
from mitm import answering
from programs import needs_program
from tunnel import run

pytestmark = needs_program("curl", "whip")

ONE, TWO, THREE = (f"instance{number}.testdom" for number in (1, 2, 3))


def test_a_fault_is_seen_for_as_long_as_it_is_on(tmp_path: Path) -> None:
    async def passes_by(it: Console) -> None:
        """What takes the place of mitmproxy's own messages."""
        it.screen.type(":")
        await it.screen.displays("\n:\n")
        it.screen.press("escape")
        await it.screen.displays("Quit")

    async def main() -> None:
        async with console(tmp_path, {ONE: answering(b"fine")}) as it:
            it.command("whip.fault instance2.testdom reset")
            await it.screen.shows(f"no instance instance2.testdom; close to it: {ONE}")
            it.screen.type(":whip.fault inst")
            it.screen.press("tab")
            await it.screen.displays(f": whip.fault {ONE}")
            it.screen.type(" sta")
            it.screen.press("tab")
            await it.screen.displays(f": whip.fault {ONE} status=503")
            it.screen.press("enter")
            await it.screen.shows(f"FAULT ON {ONE}: status 503")
            await it.screen.displays(f"FAULT {ONE}: status 503, ")
            await passes_by(it)
            assert f"FAULT {ONE}: status 503, " in str(it.screen)
            url = f"http://{ONE}/"
            assert await it.get(url) == f"whip.fault is on for {ONE}: status 503\n"
            await it.screen.displays("503", "\N{HIGH VOLTAGE SIGN}", "[1/1]")
            await passes_by(it)
            assert f"FAULT {ONE}: status 503, " in str(it.screen)
            it.command(f"whip.fault {ONE} off")
            await it.screen.shows(f"FAULT OFF {ONE}: status 503")
            await it.screen.displays(without=f"FAULT {ONE}")
            assert await it.get(url) == "fine"

    run(main())


def test_replay_across_shows_a_table_and_a_flow_its_facts(tmp_path: Path) -> None:
    services = {name: answering(b"version 1") for name in (ONE, TWO)}
    services[THREE] = answering(b"version 2", "x-version: 2")

    async def main() -> None:
        async with console(tmp_path, services) as it:
            await it.get(f"http://{ONE}/")
            await it.screen.displays("[1/1]")
            it.command("whip.replay.across @focus testdom")
            await it.screen.displays(
                *("instance           status  octets  answer", f"{ONE}  200     9       same"),
                *(f"{TWO}  200     9       same", f"{THREE}  200     9       differs"),
                *("header x-version: 2, others (none)", "-version 1", "+version 2"),
            )
            await it.screen.shows(f"3 answers; differing: {THREE}")
            it.screen.type("q")
            await it.screen.displays("Flows", "[1/4]", without="differs")
            it.screen.press("enter")
            await it.screen.displays("Flow Details")
            it.screen.type("ll")
            await it.screen.displays(
                f"Comment: whip: {ONE} port 80,", f"whip.instance       '{ONE}'", "whip.open_ms"
            )

    run(main())
