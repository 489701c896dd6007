"""`whip demo`, before a person, and what commands say while they wait."""

from __future__ import annotations

import pytest

from processes import started
from programs import path_of
from terminal import terminal
from tunnel import run
from whip_core import progress

pytestmark = pytest.mark.once


def test_the_demo_shows_each_step_and_what_came_of_it() -> None:
    async def main() -> None:
        async with terminal("whip", "demo", lines=60, columns=200) as screen:
            await screen.shows("and the agent comes to its broker ...")
            assert await screen.ended() == 0
            await screen.displays(
                *("1. Certificates:", "$ whip pki genselfsignedca", "2. A private service."),
                *("3. An agent", "$ whip client --hostname=instance1", "4. mitmproxy"),
                *("  the agent has registered.", "200: Hello from a service without a TCP port."),
                *("502: instance2.testdom:80: no agent is registered under that name",),
                *("whip: instance1.testdom port 80, ", "whip: dial failed: unknown-name after"),
                *('whip_server_active_registrations{domain="testdom"} 1.0', "That was it."),
                without="comes to its broker",
            )

    run(main())


SAYS = """
from whip_core import progress
with progress.doing("counting\\x1b[2J"):
    progress.say("wait" * 100)
print("done")
"""


def test_what_is_waited_for_is_said_on_a_terminal_and_gone_afterwards() -> None:
    async def main() -> None:
        async with terminal("python", "-c", SAYS, columns=40) as screen:
            assert await screen.ended() == 0
            await screen.displays("done", without="wait")
            assert "counting?[2J" in screen.seen
            assert f"{progress.ERASE}{('wait' * 10)[:39]}{progress.ERASE}" in screen.seen
        async with started(path_of("python"), "-c", SAYS) as process:
            assert await process.ended() == 0
            assert process.lines == ["done"]

    run(main())
