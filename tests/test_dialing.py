"""Dials: to the right agent and port, each with its own connection, and nothing left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    echo,
    exchange,
    registration,
    run,
    running,
    saying,
    scripted,
    service,
    until,
)
from whip_core import Broker, control, hookimpl
from whip_core.agents import AgentView
from whip_core.control_stream import ControlStream
from whip_core.errors import (
    AgentGone,
    DialError,
    DialTimeout,
    NotAuthorized,
    PortNotExposed,
    ServiceRefused,
    UnknownName,
)

SOON = 0.05
"""Seconds for a dial that nobody is going to answer."""
OLD = {"protocol_version": 0, "instance_id": ""}


class FirstByName:
    """Picks in the order of names, so that a test knows who is asked first."""

    @hookimpl
    def whip_pick(self, candidates: Sequence[AgentView]) -> AgentView:
        return min(candidates, key=lambda agent: str(agent.name))


# Names and ports


def test_a_dial_by_any_spelling_of_the_name_reaches_the_service() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"5051={port}")) as agent,
        ):
            await agent.wait_registered()
            for name in ("instance1.testdom", "INSTANCE1.TestDom.", "testdom", "TESTDOM."):
                for asked in (5051, 80, 443):
                    streams = await broker.open_connection(name, asked)
                    assert await exchange(streams, b"hello") == b"hello"

    run(main())


def test_each_exposed_port_leads_to_its_own_service() -> None:
    async def main() -> None:
        async with (
            service(saying(b"one")) as one,
            service(saying(b"two")) as two,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80={one},81={two}")) as agent,
        ):
            await agent.wait_registered()
            for port, text in ((80, b"one"), (81, b"two")):
                streams = await broker.open_connection("instance1.testdom", port)
                assert await exchange(streams, b"") == text
            with pytest.raises(PortNotExposed, match=r"port 443 \(exposed: 80, 81\)"):
                await broker.open_connection("instance1.testdom", 443)

    run(main())


@pytest.mark.parametrize(
    ("host", "port", "error", "text"),
    [
        ("instance2.testdom", 80, UnknownName, "registered names like it: instance1.testdom"),
        ("elsewhere.example", 80, UnknownName, "registered agents: 1, none with a name like it"),
        ("no name", 80, UnknownName, "'no name' is not a host name"),
        ("instance1.testdom", 0, UnknownName, "instance1.testdom: 0 is not a port"),
        ("instance1.testdom", "http", UnknownName, "instance1.testdom: 'http' is not a port"),
        ("instance1.testdom", 5432, PortNotExposed, "does not expose port 5432 (exposed: 80)"),
    ],
)
def test_what_cannot_be_dialled_is_told_at_once_with_what_is_known(
    host: str, port: int, error: type[DialError], text: str
) -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            with pytest.raises(error) as raised:
                await broker.open_connection(host, port)
            assert text in str(raised.value)
            assert isinstance(raised.value, ConnectionRefusedError)

    run(main())


def test_a_dial_waits_for_an_agent_to_appear_if_asked_to() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, service(saying(b"hello")) as port:
            with pytest.raises(UnknownName):
                await broker.open_connection("instance1.testdom", 80, wait=SOON)
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 80, wait=60)
            )
            async with running(agent_settings(broker.control_port, ports=f"80={port}")):
                assert await exchange(await dial, b"") == b"hello"

    run(main())


def test_every_instance_of_a_domain_is_picked_equally_often() -> None:
    count, dials = 10, 3000
    picked: Counter[str] = Counter()

    class Count:
        @hookimpl
        def whip_authorize_dial(self, agent: AgentView) -> str:
            picked[str(agent.name)] += 1
            return "counted"

    async def main() -> None:
        watch = Watch()
        async with Broker(broker_settings(), plugins=[Count(), watch]) as broker:
            agents = [scripted(broker, registration(f"a{n}")) for n in range(count)]
            for agent in agents:
                await agent.__aenter__()
            await watch.until(lambda: len(watch.joined) == count)
            for _ in range(dials):
                with pytest.raises(NotAuthorized):
                    await broker.open_connection("testdom", 80)
            for agent in agents:
                await agent.__aexit__(None, None, None)

    run(main())
    expected = dials / count
    chi_square = sum((picked[f"a{n}.testdom"] - expected) ** 2 / expected for n in range(count))
    # 9 degrees of freedom: a fair picker is above this once in a thousand million runs.
    assert chi_square < 60, picked


# Who gets which connection


@pytest.mark.parametrize("fields", [{}, OLD], ids=["ours", "old"])
def test_concurrent_dials_to_different_ports_never_get_each_others_connection(
    fields: dict[str, object],
) -> None:
    ports = range(1000, 1040)

    async def main() -> None:
        watch = Watch()
        hello = registration("instance1", *ports, **fields)
        async with (
            Broker(broker_settings(), plugins=[watch]) as broker,
            scripted(broker, hello) as agent,
        ):
            await watch.until(lambda: len(watch.joined) == 1)
            loop = asyncio.get_running_loop()
            dials = {
                port: loop.create_task(broker.open_connection("instance1.testdom", port))
                for port in ports
            }
            requests = [await agent.expect(control.Connect) for _ in ports]
            assert {request.local_port for request in requests} == set(ports)
            random.Random(1).shuffle(requests)
            for request in requests:
                if agent.registered is None:
                    text = str(request.local_port).encode()
                    await agent.connect_back(request, then=text)
                else:
                    reverse = await agent.connect_framed(request)
                    opened = await reverse.asked()
                    assert opened.port == request.local_port
                    _, writer = reverse.accept()
                    writer.write(str(opened.port).encode())
            for port, dial in dials.items():
                reader, writer = await dial
                assert await reader.readexactly(4) == str(port).encode()
                writer.transport.abort()

    run(main())


def test_a_dial_is_waited_for_before_its_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent may be quicker than whatever comes behind the sending."""
    waited_for: list[bool] = []
    send = ControlStream.send

    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker) as agent:

            def watched(stream: ControlStream, message: control.BrokerMessage) -> None:
                if isinstance(message, control.Connect):
                    waited_for.append(
                        broker._registrar.awaited.get(message.connection_id) is not None
                    )
                send(stream, message)

            monkeypatch.setattr(ControlStream, "send", watched)
            await agent.expect(control.Registered)
            with pytest.raises(DialTimeout):
                await broker.open_connection("instance1.testdom", 80, timeout=SOON)

    run(main())
    assert waited_for == [True]


def test_the_late_connection_of_a_cancelled_dial_is_closed_and_not_given_to_the_next() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            loop = asyncio.get_running_loop()
            cancelled = loop.create_task(broker.open_connection("instance1.testdom", 80))
            late = await agent.expect(control.Connect)
            cancelled.cancel()
            await asyncio.wait([cancelled])

            dial = loop.create_task(broker.open_connection("instance1.testdom", 80))
            request = await agent.expect(control.Connect)
            reverse = await agent.connect_framed(late)
            await reverse.lost()
            assert not dial.done()

            reverse = await agent.connect_framed(request)
            await reverse.asked()
            reader, writer = reverse.accept()
            writer.write_eof()
            assert await exchange(await dial, b"mine") == b""
            assert await reader.read() == b"mine"
            assert len(broker._registrar.awaited) == 0

    run(main())


# Failures


def test_an_agent_that_vanishes_fails_its_pending_dials_at_once() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            loop = asyncio.get_running_loop()

            def dial() -> asyncio.Task[object]:
                coroutine = broker.open_connection("instance1.testdom", 80, timeout=600)
                return loop.create_task(coroutine)

            not_connected, not_opened = dial(), dial()
            await agent.expect(control.Connect)
            reverse = await agent.connect_framed(await agent.expect(control.Connect))
            await reverse.asked()
            await agent.vanish()
            for pending in (not_connected, not_opened):
                with pytest.raises(AgentGone, match=r"instance1\.testdom:80"):
                    await pending
            await reverse.lost()

    run(main())


def test_a_dial_that_gets_no_answer_times_out_and_says_who_did_not_answer() -> None:
    async def main() -> None:
        async with Broker(broker_settings(dial_timeout=SOON)) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            for timeout in (None, SOON / 2):
                with pytest.raises(DialTimeout, match=r"no answer from agent instance1\.testdom"):
                    await broker.open_connection("instance1.testdom", 80, timeout=timeout)
            assert len(broker._registrar.awaited) == 0

    run(main())


def test_a_burst_of_dials_is_no_reason_to_give_an_agent_up() -> None:
    count = 3000

    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            loop = asyncio.get_running_loop()
            dials = [
                loop.create_task(broker.open_connection("instance1.testdom", 80, timeout=60))
                for _ in range(count)
            ]
            for _ in range(count):
                request = await agent.expect(control.Connect)
                await agent.send(control.ConnectFailed(request.connection_id, "not today"))
            await asyncio.wait(dials)
            assert {type(dial.exception()) for dial in dials} == {ServiceRefused}

    run(main())


@pytest.mark.parametrize("failure", ["refuses", "vanishes", "is silent"])
def test_a_candidate_that_fails_is_followed_by_another(failure: str) -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings(dial_timeout=1.0), plugins=[FirstByName()]) as broker,
            service(saying(b"hello")) as port,
            running(agent_settings(broker.control_port, ports=f"80={port}", hostname="b")) as other,
            scripted(broker, registration("a")) as first,
        ):
            await other.wait_registered()
            await first.expect(control.Registered)
            dial = asyncio.get_running_loop().create_task(broker.open_connection("testdom", 80))
            request = await first.expect(control.Connect)
            if failure == "refuses":
                await first.send(control.ConnectFailed(request.connection_id, "no service here"))
            elif failure == "vanishes":
                await first.vanish()
            assert await exchange(await dial, b"") == b"hello"

    run(main())


def test_a_pending_dial_follows_its_agent_to_the_session_that_replaces_the_old_one() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker) as old:
            await old.expect(control.Registered)
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 80)
            )
            await old.expect(control.Connect)
            async with scripted(broker) as new:
                await new.expect(control.Registered)
                reverse = await new.connect_framed(await new.expect(control.Connect))
                await reverse.asked()
                _, their_writer = reverse.accept()
                their_writer.write(b"here again")
                their_writer.write_eof()
                assert await exchange(await dial, b"") == b"here again"

    run(main())


def test_when_all_candidates_fail_the_last_ones_reason_is_told() -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings(), plugins=[FirstByName()]) as broker,
            scripted(broker, registration("a")) as one,
            scripted(broker, registration("b")) as two,
        ):
            await one.expect(control.Registered)
            await two.expect(control.Registered)
            dial = asyncio.get_running_loop().create_task(broker.open_connection("testdom", 80))
            for agent, why in ((one, "first"), (two, "second")):
                request = await agent.expect(control.Connect)
                await agent.send(control.ConnectFailed(request.connection_id, why))
            with pytest.raises(ServiceRefused, match=r"^testdom:80: second$"):
                await dial

    run(main())


def test_an_agent_that_drains_is_dialled_no_more() -> None:
    watch = Watch()

    async def main() -> None:
        async with Broker(broker_settings(), plugins=[watch]) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            await agent.send(control.Draining("restart"))
            await until(lambda: broker.agents[0].draining)
            with pytest.raises(UnknownName, match="every agent of that name is draining"):
                await broker.open_connection("instance1.testdom", 80)

    run(main())
