"""whip's commands at mitmproxy's prompt."""

from __future__ import annotations

import asyncio
import time

import pytest
from mitmproxy import http
from mitmproxy.addons.view import View
from mitmproxy.exceptions import CommandError
from mitmproxy.types import CommandTypes

from fleet import Fleet, fleet
from mitm import answering, curl, read_head
from processes import free_ports
from test_addon import connect_through
from tunnel import Handler, Log, echo, run, until
from whip_addon.facts import FAULT, INSTANCE
from whip_addon.faults import Fault, Faults
from whip_addon.labels import FAULT_MARKER
from whip_addon.prompt import FaultText, Name
from whip_core.errors import UnknownName

ONE, TWO, THREE = (f"instance{number}.testdom" for number in (1, 2, 3))


def named(*names: str) -> dict[str, Handler]:
    """Instances that answer with their own name."""
    return {name: answering(name.encode()) for name in names}


async def get(it: Fleet, host: str, *arguments: str) -> str:
    return (await curl("--proxy", it.proxy.url, *arguments, f"http://{host}/")).output


async def status_of(it: Fleet, host: str) -> str:
    return await get(it, host, "--output", "/dev/null", "--write-out", "%{http_code}")


def test_agents_are_listed_and_names_complete() -> None:
    async def main() -> None:
        async with fleet(named(TWO, ONE)) as it:
            heading, first, second = it.command("whip.agents")
            assert (heading[0], first[0], second[0]) == ("name", ONE, TWO)
            assert it.command("whip.names") == [ONE, TWO, "testdom"]
            commands = it.proxy.master.commands
            assert commands.commands["whip.kick"].parameters[0].type is Name
            for kind, expected in ((Name, ONE), (FaultText, "reset")):
                found = CommandTypes.get(kind)
                assert found is not None
                assert expected in found.completion(commands, kind, "")
            _, following = commands.parse_partial("whip.fault ")
            assert [parameter.name for parameter in following] == ["instance", "fault", "seconds"]

    run(main())


@pytest.mark.parametrize(
    "arguments",
    [
        ("whip.kick", "instance1.testdon"),
        ("whip.fault", "instance1.testdon", "reset"),
        ("whip.fault", "instance1.testdon", "off"),
        ("whip.pick", "testdom", "instance1.testdon"),
    ],
)
def test_a_command_on_a_name_that_does_not_exist_says_which_are_close(
    arguments: tuple[str, ...],
) -> None:
    async def main() -> None:
        async with fleet(named(ONE)) as it:
            with pytest.raises(CommandError) as caught:
                it.command(*arguments)
            assert str(caught.value) == (
                "there is no instance instance1.testdon; close to it: instance1.testdom"
            )

    run(main())


def test_a_domain_that_does_not_exist_says_which_are_close() -> None:
    async def main() -> None:
        async with fleet(named(ONE), View()) as it:
            await get(it, ONE)
            with pytest.raises(CommandError, match="no domain testdon; close to it: testdom"):
                it.command("whip.pick", "testdon", ONE)
            with pytest.raises(CommandError, match="no domain testdon; close to it: testdom"):
                it.command("whip.replay.across", "@all", "testdon")
            with pytest.raises(CommandError, match="not a host name"):
                it.command("whip.kick", "a b")

    run(main())


def test_pick_gives_a_domain_to_one_instance_and_back() -> None:
    async def main() -> None:
        async with fleet({**named(ONE, TWO), "a.other": echo}) as it:
            for chosen in (TWO, ONE):
                it.command("whip.pick", "TestDom.", chosen)
                assert {await get(it, "testdom") for _ in range(4)} == {chosen}
            it.command("whip.pick", "testdom")
            with pytest.raises(CommandError, match="is not pinned"):
                it.command("whip.pick", "testdom")
            with pytest.raises(CommandError, match="is not an instance of"):
                it.command("whip.pick", "other", ONE)

    run(main())


def test_kick_ends_the_session_and_the_agent_comes_back() -> None:
    async def main() -> None:
        async with fleet(named(ONE)) as it:
            [before] = it.broker.agents
            it.command("whip.kick", ONE)
            await until(lambda: len(it.broker.agents) == 1)
            [after] = it.broker.agents
            assert before.session_id != after.session_id
            for wrong in ("nobody.testdom", "not a name"):
                with pytest.raises(UnknownName):
                    it.broker.kick(wrong)

    run(main())


# Faults


def test_a_status_fault_on_an_instance_hits_it_by_its_name_and_through_its_domain() -> None:
    asked: list[str] = []

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        asked.append("request")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async def main() -> None:
        async with fleet({ONE: counting, "a.other": answering(b"fine")}) as it:
            it.command("whip.fault", ONE, "status=503")
            assert await status_of(it, ONE) == "503"
            assert asked == []
            assert await get(it, "testdom") == (
                "whip.fault is on for instance1.testdom: status 503\n"
            )
            assert await status_of(it, "a.other") == "200"
            by_name, by_domain, other = it.flows
            for flow in (by_name, by_domain):
                assert flow.metadata[FAULT] == "status 503"
                assert flow.marked == FAULT_MARKER
                assert "503" in flow.comment
                assert isinstance(flow, http.HTTPFlow)
                assert flow.response is not None
                assert "whip.fault is on" in (flow.response.text or "")
            assert (other.marked, FAULT in other.metadata) == ("", False)
            it.command("whip.fault", ONE, "off")
            assert await status_of(it, ONE) == "200"
            with pytest.raises(CommandError, match="has no fault"):
                it.command("whip.fault", ONE, "off")

    run(main())


def test_a_delay_fault_delays_each_answer_also_on_a_connection_that_is_open() -> None:
    async def main() -> None:
        async with fleet({ONE: echo}, connection_strategy="eager") as it:
            [agent] = it.broker.agents
            reader, writer = await connect_through(it.proxy.port, f"{ONE}:{agent.ports[0]}")
            writer.write(b"\x00one\n")
            await reader.readline()
            it.command("whip.fault", ONE, "delay=200ms")
            started = time.monotonic()
            writer.write(b"two\n")
            assert await reader.readline() == b"two\n"
            assert time.monotonic() - started >= 0.2
            writer.close()
            await it.ended.until(1)
            assert it.flows[0].metadata[FAULT] == "delay of 0.2 s"

    run(main())


def test_a_throttle_fault_lets_an_instances_bytes_come_at_its_pace() -> None:
    async def main() -> None:
        async with fleet({ONE: answering(b"x" * 4000)}) as it:
            it.command("whip.fault", ONE, "throttle=10000")
            started = time.monotonic()
            assert len(await get(it, ONE)) == 4000
            assert time.monotonic() - started >= 0.4

    run(main())


def test_a_reset_fault_breaks_what_is_open_and_what_comes() -> None:
    async def main() -> None:
        async with fleet({ONE: echo, "web.testdom": answering(b"ok")}) as it:
            agents = {agent.name.hostname: agent for agent in it.broker.agents}
            target = f"{ONE}:{agents['instance1'].ports[0]}"
            reader, writer = await connect_through(it.proxy.port, target)
            writer.write(b"\x00one\n")
            await reader.readline()
            it.command("whip.fault", ONE, "reset")
            writer.write(b"two\n")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            it.command("whip.fault", "web.testdom", "reset")
            assert await status_of(it, "web.testdom") == "502"
            [failed] = [flow for flow in it.flows if flow.metadata[INSTANCE] == "web.testdom"]
            assert failed.metadata[FAULT] == "reset"

    run(main())


def test_a_fault_says_when_it_is_on_and_when_its_time_is_over() -> None:
    async def main() -> None:
        with Log() as log:
            async with fleet(named(ONE)) as it:
                it.command("whip.fault", ONE, "status=500", 1)
                assert it.command("whip.agents")[1][-1] == "status 500"
                assert any(f"FAULT ON {ONE}: status 500, for 1 s" in line for line in log.lines)
                await log.until(f"FAULT OVER {ONE}: status 500")
                assert await status_of(it, ONE) == "200"

    run(main())


def test_a_line_tells_of_the_faults_that_are_on_and_is_no_longer_for_many() -> None:
    async def main() -> None:
        faults = Faults(lambda instance, fault: None)
        assert faults.summary() == ""
        for number in range(5):
            faults.put(f"i{number}.testdom", Fault.parse("reset"), 1000)
        first = "; ".join(f"i{number}.testdom: reset, 1000 s more" for number in range(3))
        assert faults.summary() == f"FAULT {first}; and 2 more"
        faults.lift_all()
        assert faults.summary() == ""

    run(main())


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ("explode", 1),
        ("delay", 1),
        ("delay=", 1),
        ("delay=1.2.3s", 1),
        ("delay=9999", 1),
        ("throttle=0", 1),
        ("status=200", 1),
        ("reset=1", 1),
        ("reset", 0),
        ("reset", 10**6),
    ],
)
def test_a_fault_that_cannot_be_is_refused_in_a_line(fault: str, seconds: int) -> None:
    async def main() -> None:
        async with fleet(named(ONE)) as it:
            with pytest.raises(CommandError) as caught:
                it.command("whip.fault", ONE, fault, seconds)
            assert "\n" not in str(caught.value)
            assert it.command("whip.agents")[1][-1] == ""

    run(main())


# Replay across


def test_replay_across_finds_the_one_of_three_that_answers_differently() -> None:
    heads: list[bytes] = []

    def versioned(version: int) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await read_head(reader))
            body = b'{"version": %d}' % version
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

        return handle

    async def main() -> None:
        services = {ONE: versioned(1), TWO: versioned(2), THREE: versioned(1)}
        view = View()
        with Log() as log:
            async with fleet(services, view) as it:
                await get(it, ONE)
                it.command("whip.replay.across", "@all", "testdom")
                told = await log.until("differing: ")
                assert told.endswith(f"3 answers; differing: {TWO}")
                table = next(line for line in log.lines if "across testdom:\n" in line)
                assert [" ".join(row.split()) for row in table.splitlines()[1:5]] == [
                    "instance status octets answer",
                    f"{ONE} 200 14 same",
                    f"{TWO} 200 14 differs",
                    "body:",
                ]
                assert {flow.metadata[INSTANCE] for flow in it.flows[1:]} == {ONE, TWO, THREE}
                assert all(b"Host: instance1.testdom\r\n" in head for head in heads)
                assert len(view) == 4

    run(main())


def test_replay_across_takes_no_refusal_of_whips_for_an_answer() -> None:
    [nobody] = free_ports(1)

    async def main() -> None:
        with Log() as log:
            services = {ONE: answering(b"ok"), TWO: nobody, THREE: answering(b"ok")}
            async with fleet(services, View()) as it:
                await get(it, ONE)
                it.command("whip.fault", THREE, "status=503")
                it.command("whip.replay.across", "@all", "testdom")
                told = await log.until("differing: ")
                assert told.endswith(f"1 answers; differing: none; not reached: {TWO}, {THREE}")
                table = next(line for line in log.lines if "across testdom:\n" in line)
                assert f"{THREE}  -       -       not reached: 503, whip.fault is on" in table

    run(main())


def test_what_cannot_be_replayed_is_refused() -> None:
    view = View()

    async def main() -> None:
        async with fleet({ONE: echo}, view, connection_strategy="eager") as it:
            [agent] = it.broker.agents
            _, writer = await connect_through(it.proxy.port, f"{ONE}:{agent.ports[0]}")
            writer.write(b"\x00x")
            await until(lambda: len(view) == 1)
            with pytest.raises(CommandError, match="only HTTP requests"):
                it.command("whip.replay.across", "@all", "testdom")
            writer.close()
            await it.ended.until(1)

    run(main())
