"""The real agent's life: it registers wherever it is wanted, comes back, and stops in peace."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from client_agent import Agent, discovery, outbox
from client_agent.control_client import ControlClient, ControlClosed
from client_agent.discovery import Resolvers
from client_agent.endpoints import Address
from dns_server import DNSServer
from tunnel import (
    Log,
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    registration,
    run,
    running,
    saying,
    scripted,
    server_files,
    service,
    until,
)
from whip_core import Broker, control
from whip_core.errors import (
    StreamCut,
    UnknownName,
)
from whip_core.tasks import TaskSet
from whip_core.testing import Authority
from whip_core.testing.broker import ScriptedBroker

# Registration


def test_the_agent_registers_at_several_brokers_and_once_where_two_endpoints_are_one() -> None:
    async def main() -> None:
        watches = Watch(), Watch()
        async with (
            service(saying(b"hello")) as port,
            Broker(broker_settings(), plugins=[watches[0]]) as one,
            Broker(broker_settings(), plugins=[watches[1]]) as two,
        ):
            endpoints = (f"127.0.0.1:{one.control_port}", one.control_port, two.control_port)
            async with running(agent_settings(*endpoints, ports=f"80={port}")) as agent:
                for watch in watches:
                    await watch.until(lambda watch=watch: len(watch.joined) == 1)
                for broker in (one, two):
                    streams = await broker.open_connection("instance1.testdom", 80)
                    assert await exchange(streams, b"") == b"hello"
                assert [len(watch.joined) for watch in watches] == [1, 1]
                assert len(agent.registered_at) == 2

    run(main())


def test_the_agent_comes_back_to_a_broker_that_was_away() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker:
            ports = {
                "grpc_listen_port": broker.control_port,
                "tcp_listen_port": broker.reverse_port,
            }
        async with service(saying(b"hello")) as port:
            with Log() as log:
                settings = agent_settings(ports["grpc_listen_port"], ports=f"80={port}")
                async with running(settings):
                    await log.until("no broker at 127.0.0.1")
                    for _ in range(2):
                        async with Broker(broker_settings(**ports)) as broker:
                            streams = await broker.open_connection("testdom", 80, wait=20)
                            assert await exchange(streams, b"") == b"hello"

    run(main())


def test_a_refused_registration_is_logged_plainly_and_once_while_it_is_tried_again() -> None:
    async def main() -> None:
        watch = Watch()
        async with Broker(broker_settings(), plugins=[watch]) as broker, scripted(broker) as holder:
            await holder.expect(control.Registered)
            with Log() as log:
                async with running(agent_settings(broker.control_port, ports="80")) as agent:
                    line = await log.until("refused the registration")
                    assert line.startswith(
                        f"the broker at 127.0.0.1:{broker.control_port} refused the registration: "
                        "the name instance1.testdom is held by a live agent at 127.0.0.1 port"
                    )
                    await log.until("refused agent instance1.testdom", count=2)
                    await holder.vanish()
                    await agent.wait_registered()
            assert len(log.having("refused the registration")) == 1

    run(main())


@pytest.fixture
def strangers(tmp_path: Path) -> Authority:
    """A CA that is not ours."""
    return Authority(tmp_path / "strangers")


@pytest.mark.parametrize(
    ("broker", "agent", "said"),
    [
        ("other.example", "*.testdom", "its certificate is for other names, not for localhost"),
        ("localhost", "*.otherdom", "refused the registration: instance1.testdom refused: its "),
        ("localhost", "another CA", "its certificate is not from a CA in --tls-ca-cert-path"),
        ("localhost", "no TLS", "it hangs up at once; does it want TLS?"),
        ("no TLS", "*.testdom", "it does not speak TLS"),
    ],
)
def test_without_proof_on_both_sides_there_is_no_registration_and_it_is_told_why(
    broker: str, agent: str, said: str, strangers: Authority
) -> None:
    files = {"no TLS": None, "another CA": strangers.client_files("*.testdom")}
    agent_files = files[agent] if agent in files else client_files(agent)
    broker_files = None if broker == "no TLS" else server_files(broker)

    async def main() -> None:
        async with Broker(broker_settings(tls=broker_files)) as broker:
            settings = agent_settings(broker.control_port, ports="80", tls=agent_files)
            with Log() as log:
                async with running(settings) as agent:
                    assert "\n" not in await log.until(said)
                    assert agent.registered_at == []
                    assert broker.agents == []

    run(main())


def test_what_is_no_broker_is_told_as_such() -> None:
    async def main() -> None:
        async with service(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
            with Log() as log:
                async with running(agent_settings(port, ports="80")):
                    line = await log.until("no broker at 127.0.0.1")
                    assert line.endswith("what listens there does not speak gRPC")

    run(main())


def test_a_control_stream_that_nobody_reads_is_given_up_as_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not as a cancellation, by which the agent would never try again."""

    async def main() -> None:
        async with ScriptedBroker() as broker:
            address = Address("127.0.0.1", broker.control_port)
            async with ControlClient(address, "localhost", None) as client:
                client.send(registration())
                await broker.agent()
                receiving = asyncio.get_running_loop().create_task(client.receive())
                await asyncio.sleep(0)
                monkeypatch.setattr(outbox, "MAX_UNSENT", 0)
                client.send(control.Draining())
                with pytest.raises(ControlClosed, match="does not read"):
                    await receiving

    run(main())


# Stopping


def test_a_stopped_agent_lets_its_streams_finish_and_takes_no_new_ones() -> None:
    async def main() -> None:
        async with service(echo) as port, Broker(broker_settings()) as broker:
            agent = Agent(agent_settings(broker.control_port, ports=f"80={port}"))
            task = asyncio.get_running_loop().create_task(agent.run())
            await agent.wait_registered()
            reader, writer = await broker.open_connection("instance1.testdom", 80)
            agent.stop()
            await until(lambda: broker.agents[0].draining)
            with pytest.raises(UnknownName, match="draining"):
                await broker.open_connection("instance1.testdom", 80)
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            assert not task.done()
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await task
            assert agent.registered_at == []

    run(main())


@pytest.mark.parametrize("how", ["time is up", "cancelled"])
def test_streams_that_do_not_finish_are_cut_and_seen_as_cut(how: str) -> None:
    async def main() -> None:
        async with service(echo) as port, Broker(broker_settings()) as broker:
            settings = agent_settings(
                broker.control_port,
                ports=f"80={port}",
                drain_timeout=0.05 if how == "time is up" else 60.0,
            )
            agent = Agent(settings)
            task = asyncio.get_running_loop().create_task(agent.run())
            await agent.wait_registered()
            reader, writer = await broker.open_connection("instance1.testdom", 80)
            agent.stop()
            if how == "cancelled":
                await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(StreamCut):
                await reader.read()
            writer.close()
            await asyncio.wait([task])

    run(main())


@pytest.mark.parametrize("in_time", [True, False], ids=["in time", "too late"])
def test_streams_at_a_broker_that_is_being_left_count_when_the_agent_stops(
    in_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MIN_TTL", 0.01)

    async def main() -> None:
        async with (
            DNSServer() as dns,
            service(echo) as port,
            Broker(broker_settings()) as left,
            Broker(broker_settings()) as kept,
        ):
            dns.set("broker.test", "A", "127.0.0.1")
            dns.set("_whip._tcp.test", "SRV", f"0 0 {left.control_port} broker.test.", ttl=0)
            agent = Agent(
                agent_settings(
                    "srv:_whip._tcp.test",
                    ports=f"80={port}",
                    drain_timeout=60.0 if in_time else 0.05,
                ),
                resolvers=Resolvers(nameservers=["127.0.0.1"], nameserver_port=dns.port),
            )
            task = asyncio.get_running_loop().create_task(agent.run())
            await agent.wait_registered()
            reader, writer = await left.open_connection("instance1.testdom", 80)
            with Log() as log:
                dns.set("_whip._tcp.test", "SRV", f"0 0 {kept.control_port} broker.test.")
                await until(lambda: kept.agents and left.agents[0].draining)
                assert not agent.is_quiet
                agent.stop()
                await until(lambda: not kept.agents)
                if in_time:
                    writer.write(b"still here")
                    writer.write_eof()
                    assert await reader.read() == b"still here"
                else:
                    with pytest.raises(StreamCut):
                        await reader.read()
                await task
            assert bool(log.having("are cut")) is not in_time
            assert agent.is_quiet
            writer.close()

    run(main())


def test_a_stopping_agent_does_not_register_again() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as other,
            Broker(broker_settings()) as broker,
        ):
            agent = Agent(
                agent_settings(broker.control_port, other.control_port, ports=f"80={port}")
            )
            task = asyncio.get_running_loop().create_task(agent.run())
            await until(lambda: len(agent.registered_at) == 2)
            streams = await broker.open_connection("instance1.testdom", 80)
            runs = {address.port: run for address, run in agent._runs.items()}
            with Log() as log:
                agent.stop()
                # It leaves the broker where no stream runs, for good and without a word.
                await asyncio.wait([runs[other.control_port]])
                assert await exchange(streams, b"hello") == b"hello"
                await task
            assert other.agents == []
            assert not log.having("closed the control stream")
            assert not log.having("registered instance1.testdom")

    run(main())


def test_an_agent_that_no_broker_answers_stops_at_once() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with service(silent) as port:
            agent = Agent(agent_settings(port, ports="80"))
            with Log() as log:
                task = asyncio.get_running_loop().create_task(agent.run())
                await log.until("joining the broker")
                agent.stop()
                async with asyncio.timeout(5):
                    await task

    run(main())


def test_what_grpc_says_in_many_lines_is_one_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def write(message: bytes) -> None:
        raise asyncio.InvalidStateError("<AioRpcError:\n\tstatus = UNAVAILABLE\n>")

    async def main() -> None:
        with caplog.at_level("DEBUG"):
            unsent = outbox.Outbox(write, tasks := TaskSet())
            assert unsent.put(b"x")
            await unsent.flushed()
            await tasks.cancel_all()

    run(main())
    [line] = [text for text in caplog.messages if "cannot send" in text]
    assert line == "cannot send on a control stream: <AioRpcError: status = UNAVAILABLE >"
