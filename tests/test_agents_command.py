"""`whip agents` as an operator uses it, and the names it does not know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tunnel import broker_settings, registration, run, scripted
from whip_core import Broker, control
from whip_core.cli import main as whip_main
from whip_core.commands.agent_lines import human_age, human_bytes, lines
from whip_core.operating import Listening, operating


@asynccontextmanager
async def operated(path: Path, *registrations: control.Register) -> AsyncIterator[Broker]:
    """A broker with its control socket, and agents at it."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(broker_settings()))
        await stack.enter_async_context(operating(broker, Listening("", True, str(path))))
        for message in registrations:
            agent = await stack.enter_async_context(scripted(broker, message))
            await agent.expect(control.Registered)
        yield broker


async def whip(path: Path, *arguments: str, command: str = "agents") -> Result:
    def call() -> Result:
        return CliRunner().invoke(whip_main, [command, f"--control-socket={path}", *arguments])

    return await asyncio.to_thread(call)


def test_agents_are_listed_in_a_table_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(
            path,
            registration("b", 80, 443, labels={"zone": "eu"}, software_version="0.1.0"),
            registration("a"),
        ):
            listed = await whip(path)
            assert listed.exit_code == 0, listed.output
            head, *rows = listed.stdout.splitlines()
            assert head.split()[:4] == ["NAME", "PORTS", "RTT", "STREAMS"]
            assert [row.split()[0] for row in rows] == ["a.testdom", "b.testdom"]
            assert head.index("PORTS") == rows[1].index("80,443")
            assert rows[1].endswith("zone=eu")
            assert "STATE" not in head  # nobody is in any
            told = json.loads((await whip(path, "--json")).stdout)
            assert [agent["name"] for agent in told] == ["a.testdom", "b.testdom"]
            assert told[1]["labels"] == {"zone": "eu"}
            [one] = json.loads((await whip(path, "--json", "--search=zone=eu")).stdout)
            assert one["name"] == "b.testdom"
            [first, *_] = json.loads((await whip(path, "--json", "--sort=-name")).stdout)
            assert first["name"] == "b.testdom"

    run(main())


def test_nobody_is_told_apart_from_nobody_who_matches(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(path):
            assert (await whip(path)).stderr == "no agent is registered\n"
            assert json.loads((await whip(path, "--json")).stdout) == []
        async with operated(path, registration()):
            assert (await whip(path, "--search=x")).stderr == "none of 1 agents matches\n"

    run(main())


def test_an_agent_is_kicked_and_a_name_that_nobody_has_is_told_what_is_close(
    tmp_path: Path,
) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(path, registration("instance1"), registration("instance2")) as broker:
            for name, status, hint in (
                ("instance3.testdom", 1, "names like it: instance2.testdom, instance1.testdom"),
                ("testdom", 1, "it is a domain of 2: kick one by name, such as instance1.testdom"),
                ("elsewhere.example", 1, "registered agents: 2, none with a name like it"),
                ("two words", 2, "has characters or a length that no DNS label has"),
                ("\x1b[2J", 2, "has characters or a length that no DNS label has"),
            ):
                failed = await whip(path, f"--kick={name}")
                assert failed.exit_code == status
                [line] = failed.stderr.splitlines()
                assert line.startswith("Error: ")
                assert line.removesuffix(" (see: main agents --help)").endswith(hint)
                assert line.isprintable()
            assert len(broker.agents) == 2
            kicked = await whip(path, "--kick=instance1.testdom")
            assert kicked.stdout == (
                "kicked instance1.testdom: its session has ended; it may come back\n"
            )
            assert [agent.name.full for agent in broker.agents] == ["instance2.testdom"]
            as_json = await whip(path, "--kick=instance2.testdom", "--json")
            assert json.loads(as_json.stdout) == {"kicked": ["instance2.testdom"]}

    run(main())


def test_without_a_broker_there_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = CliRunner().invoke(whip_main, ["agents", f"--control-socket={tmp_path}/none"])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "there is no control socket" in line


def test_a_wrong_column_to_sort_by_is_a_wrong_call() -> None:
    result = CliRunner().invoke(whip_main, ["agents", "--sort=colour"])
    assert result.exit_code == 2
    assert "'colour' is not one of" in result.stderr


# How it looks


def agent(**changes: object) -> dict[str, object]:
    return {
        "name": "instance1.testdom",
        "ports": [80],
        "round_trip_ms": 1.234,
        "streams": 0,
        "bytes_to_agent": 0,
        "bytes_from_agent": 0,
        "parked": 1,
        "since": 0.0,
        "version": "0.1.0",
        "address": "10.0.0.1",
        "draining": False,
        "labels": {},
    } | changes


def test_hostile_texts_keep_the_table_in_shape() -> None:
    made = lines(
        [
            agent(labels={"k": "\x1b[31mred\n\u202e" + "x" * 10_000}, version="v\t1\r\x07"),
            agent(labels={"名前": "値" * 100}),
        ],
        width=100,
    )
    assert len(made) == 3
    for line in made:
        text = click.unstyle(line)
        assert text.isprintable()
        assert "\x1b" not in text
        assert sum(2 if ord(character) > 0x2E80 else 1 for character in text) <= 100


def test_states_are_shown_once_an_agent_is_in_one() -> None:
    made = [click.unstyle(line) for line in lines([agent(draining=True, ejected=True), agent()])]
    assert "STATE" in made[0]
    assert "draining,ejected" in made[1]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (99_940, "99.9 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (5 * 10**12, "5 TB"),
        (10**16, "10 PB"),
    ],
)
def test_bytes_are_told_in_three_digits(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_a_clock_that_goes_back_makes_nobody_younger_than_nothing() -> None:
    assert human_age(1e12) == "0s"


def test_colours_are_for_terminals_and_for_those_who_want_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @click.command()
    def coloured() -> None:
        click.secho("text", fg="red")

    whip_main.add_command(coloured)
    try:
        for no_color, expected in (("", "\x1b[31mtext\x1b[0m\n"), ("1", "text\n")):
            monkeypatch.setenv("NO_COLOR", no_color)
            result = CliRunner().invoke(whip_main, ["coloured"], color=True)
            assert result.output == expected
        monkeypatch.delenv("NO_COLOR")
        assert CliRunner().invoke(whip_main, ["coloured"]).output == "text\n"
    finally:
        del whip_main.commands["coloured"]


def test_shells_complete_commands_options_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(*words: str) -> list[str]:
        monkeypatch.setenv("_WHIP_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("whip", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        result = CliRunner().invoke(whip_main, prog_name="whip")
        assert result.exit_code == 0
        return [line.partition(",")[2] for line in result.stdout.splitlines()]

    assert {"agents", "top", "client", "proxy"} <= set(completed(""))
    assert completed("ag") == ["agent", "agents"]
    assert completed("agents", "--ki") == ["--kick"]
    assert completed("agents", "--sort", "str") == ["streams"]


def test_shells_complete_the_names_of_agents_to_kick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.sock"
    monkeypatch.setenv("_WHIP_COMPLETE", "bash_complete")
    monkeypatch.setenv("WHIP_CONTROL_SOCKET", str(path))
    monkeypatch.setenv("COMP_WORDS", "whip agents --kick inst")
    monkeypatch.setenv("COMP_CWORD", "3")

    def complete() -> str:
        return CliRunner().invoke(whip_main, prog_name="whip").stdout

    async def main() -> None:
        async with operated(path, registration("instance1"), registration("other")):
            assert await asyncio.to_thread(complete) == "plain,instance1.testdom\n"
        assert (await asyncio.to_thread(complete)).strip() == ""

    run(main())
