"""`whip top` in a real terminal, and where there is none."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from processes import output_of, started
from programs import path_of
from terminal import terminal
from test_agents_command import operated, whip
from tunnel import broker_settings, registration, run
from whip_core import Broker
from whip_core.commands.top import ENTER, LEAVE, Rates
from whip_core.operating import Listening, operating


def test_it_redraws_sorts_by_key_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        agents = (registration("a", labels={"zone": "eu"}), registration("b"))
        async with (
            operated(path, *agents) as broker,
            terminal(
                "whip", "top", f"--control-socket={path}", "--interval=0.1", columns=200
            ) as screen,
        ):
            before = screen.settings()
            at = await screen.shows("a.testdom")
            at = await screen.shows("zone=eu", after=at)
            assert "2 agents in 1 domains" in screen.seen
            screen.type("n")  # again by name, so in reverse
            at = await screen.shows("sorted by -name", after=at)
            broker.kick("a.testdom")
            at = await screen.shows("1 agents in 1 domains", after=at)
            screen.type("q")
            assert await screen.ended() == 0
            await screen.shows(LEAVE)
            assert screen.seen.startswith(ENTER)
            assert screen.seen.endswith(LEAVE)
            assert screen.settings() == before

    run(main())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_terminal_is_put_back_however_it_ends(tmp_path: Path, number: int, status: int) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with (
            operated(path, registration()),
            terminal("whip", "top", f"--control-socket={path}") as screen,
        ):
            before = screen.settings()
            await screen.shows("instance1.testdom")
            screen.signal(number)
            assert await screen.ended() == status
            await screen.shows(LEAVE)
            assert screen.settings() == before
            assert "Traceback" not in screen.seen

    run(main())


def test_a_broker_that_goes_is_told_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with Broker(broker_settings()) as broker:
            listening = Listening("", True, str(path))
            command = ("top", f"--control-socket={path}", "--interval=0.1")
            async with operating(broker, listening):
                screen = await (opened := terminal("whip", *command)).__aenter__()
                at = await screen.shows("0 agents in 0 domains")
            at = await screen.shows("retrying", after=at)
            async with operating(broker, listening):
                await screen.shows("0 agents in 0 domains", after=at)
            await opened.__aexit__(None, None, None)

    run(main())


def test_hostile_texts_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    hello = registration(software_version="\x1b]0;owned\x07\x9b2J" + "v" * 10_000)

    async def main() -> None:
        async with (
            operated(path, hello),
            terminal("whip", "top", f"--control-socket={path}", "--count=1", columns=300) as screen,
        ):
            assert await screen.ended() == 0
            await screen.shows(LEAVE)
            assert "?]0;owned" in screen.seen
            assert "\x1b]0" not in screen.seen
            assert "\x07" not in screen.seen
            assert "\x9b" not in screen.seen

    run(main())


def test_without_a_terminal_one_look_follows_another(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(path, registration("a")):
            told = await output_of(
                *("whip", "top", f"--control-socket={path}", "--count=2", "--interval=0.1")
            )
            assert "\x1b" not in told
            assert told.count("a.testdom") == 2
            as_json = await output_of(
                *("whip", "top", f"--control-socket={path}", "--json"),
                *("--count=2", "--interval=0.6"),
            )
            looks = [json.loads(line) for line in as_json.splitlines()]
            assert [look["agents"][0]["name"] for look in looks] == ["a.testdom"] * 2
            assert [look["agents"][0]["rate_to_agent"] for look in looks] == [None, 0]
            assert looks[0]["broker"]["agents"] == 1

    run(main())


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(path, registration("a")):
            pipe = '"$@" | head -1; exit ${PIPESTATUS[0]}'
            command = (path_of("whip"), "top", f"--control-socket={path}", "--interval=0.1")
            async with started("bash", "-c", pipe, "bash", *command) as process:
                assert await process.ended() == 0
                assert "Traceback" not in str(process)

    run(main())


def test_without_a_broker_there_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = run(whip(tmp_path / "none.sock", command="top"))
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "there is no control socket" in line


def test_rates_are_of_the_same_agent_and_never_below_zero() -> None:
    rates = Rates()

    def look(now: float, to_agent: int, since: float = 1.0) -> tuple[int | None, int | None]:
        agent = {
            "name": "a",
            "since": since,
            "bytes_to_agent": to_agent,
            "bytes_from_agent": 0,
        }
        rates.add_to([agent], now)
        return agent["rate_to_agent"], agent["rate_from_agent"]

    assert look(10.0, 100) == (None, None)
    assert look(12.0, 300) == (100, 0)
    assert look(12.0, 300) == (100, 0)  # the same look, told again
    assert look(13.0, 200) == (0, 0)
    assert look(14.0, 900, since=2.0) == (None, None)  # it has registered anew
