"""The broker as a whole: whom it pings, what is its own, where it listens, how it ends."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    registration,
    run,
    running,
    saying,
    scripted,
    service,
)
from whip_core import Broker, control
from whip_core.errors import AddressInUse, BrokerClosed, SettingsError, UnknownName
from whip_core.settings import PING_INTERVAL

SOON = 0.05
"""Seconds for a probe that nobody is going to answer."""


def names(broker: Broker) -> list[str]:
    return [str(agent.name) for agent in broker.agents]


# Pings


def test_agents_are_pinged_spread_over_the_interval_from_the_start() -> None:
    count = 64

    async def main() -> None:
        watch = Watch()
        async with Broker(broker_settings(), plugins=[watch]) as broker:
            agents = [scripted(broker, registration(f"a{n}")) for n in range(count)]
            for agent in agents:
                await agent.__aenter__()
            await watch.until(lambda: len(watch.joined) == count)
            now = asyncio.get_running_loop().time()
            due = [session.next_ping.when() - now for session in broker._registrar.registry]
            assert all(delay <= PING_INTERVAL for delay in due)
            quarters = [sum(int(delay / PING_INTERVAL * 4) == n for delay in due) for n in range(4)]
            # 64 uniform ones leave fewer than 2 in some quarter once in a million runs.
            assert min(quarters) >= 2, quarters
            for agent in agents:
                await agent.__aexit__(None, None, None)

    run(main())


def test_a_ping_goes_out_at_each_interval_and_its_round_trip_is_known() -> None:
    watch = Watch()

    async def main() -> None:
        async with (
            Broker(broker_settings(ping_interval=0.02), plugins=[watch]) as broker,
            scripted(broker) as agent,
        ):
            sequences = [(await agent.expect(control.Ping)).sequence for _ in range(3)]
            assert sequences == [1, 2, 3]
            await watch.until(lambda: len(watch.round_trips) >= 3)
            assert all(0 < seconds < PING_INTERVAL for seconds in watch.round_trips)
            assert broker.agents[0].round_trip in watch.round_trips

    run(main())


def test_an_agent_that_leaves_its_pings_unanswered_is_let_go() -> None:
    watch = Watch()

    async def main() -> None:
        settings = broker_settings(ping_interval=0.02, ping_timeout=0.05)
        async with (
            Broker(settings, plugins=[watch]) as broker,
            scripted(broker, answers_pings=False) as agent,
        ):
            assert (await agent.ended()).status == "ABORTED"
            [(_, reason)] = watch.left
            assert "has not answered" in reason
            assert broker.agents == []

    run(main())


def test_a_pong_that_answers_no_ping_is_no_round_trip() -> None:
    watch = Watch()

    async def main() -> None:
        async with Broker(broker_settings(), plugins=[watch]) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            await agent.send(control.Pong(99, 0, 0))
            await agent.leave()
            await watch.until(lambda: len(watch.left) == 1)
            assert watch.round_trips == []

    run(main())


# The whole broker


def test_a_name_is_whips_if_it_is_registered_was_or_is_in_a_listed_domain() -> None:
    async def main() -> None:
        watch = Watch()
        settings = broker_settings(domains=("Listed.Example",))
        async with Broker(settings, plugins=[watch]) as broker:
            assert broker.routes("listed.example")
            assert broker.routes("A.listed.example.")
            assert not broker.routes("instance1.testdom")
            async with scripted(broker) as agent:
                await agent.expect(control.Registered)
                assert broker.routes("Instance1.TestDom.")
                assert broker.routes("testdom")
                assert broker.routes("not-registered.testdom")
                assert not broker.routes("nottestdom")
            await watch.until(lambda: len(watch.left) == 1)
            assert broker.routes("instance1.testdom")
            for no_name in ("", "two words", "a..b", "127.0.0.1", "x" * 300, "\udcff"):
                assert not broker.routes(no_name)

    run(main())


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ("tcp_listen_port", "--whip-tcp-listen-port"),
        ("grpc_listen_port", "--whip-grpc-listen-port"),
    ],
)
@pytest.mark.parametrize("listen_host", ["127.0.0.1", None])
def test_a_port_in_use_is_one_line_that_names_the_option(
    setting: str, option: str, listen_host: str | None
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(SettingsError) as raised:
                async with Broker(broker_settings(listen_host=listen_host, **{setting: port})):
                    pass
        message = str(raised.value)
        assert str(port) in message
        assert option in message
        assert "\n" not in message

    run(main())


def test_a_forward_is_refused_as_a_dial_and_a_socket_of_pythons_would_be() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            async with Broker(broker_settings()) as broker:
                for name, at in (("bad name", 80), ("x.testdom", 0)):
                    with pytest.raises(UnknownName, match=name):
                        broker.forward(name, at)
                with pytest.raises(OSError, match="choose another LISTEN") as raised:
                    async with broker.forward("x.testdom", "80", listen_port=port):
                        pass
        assert isinstance(raised.value, AddressInUse)
        assert raised.value.errno == errno.EADDRINUSE

    run(main())


def test_a_port_may_be_given_in_digits_as_to_asyncio() -> None:
    async def main() -> None:
        async with (
            service(saying(b"hello")) as port,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            reader, writer = await broker.open_connection("testdom", "80")
            assert await reader.read() == b"hello"
            writer.close()

    run(main())


def test_without_tls_a_broker_listens_on_loopback_only_unless_told_otherwise() -> None:
    with pytest.raises(SettingsError, match="--allow-plaintext"):
        broker_settings(listen_host="0.0.0.0")
    assert broker_settings(listen_host="0.0.0.0", allow_plaintext=True).tls is None
    assert broker_settings(listen_host=None).listen_hosts == ("::1", "127.0.0.1")


def test_a_broker_that_is_not_open_says_so_to_those_who_dial() -> None:
    async def main() -> None:
        broker = Broker(broker_settings())
        with pytest.raises(BrokerClosed):
            await broker.open_connection("instance1.testdom", 80)
        async with broker:
            with pytest.raises(UnknownName):
                await broker.open_connection("instance1.testdom", 80)
            waiting = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 80, wait=60)
            )
            await asyncio.sleep(0)
        with pytest.raises(BrokerClosed):
            await waiting
        with pytest.raises(BrokerClosed):
            await broker.open_connection("instance1.testdom", 80)

    run(main())


def test_agents_are_told_when_the_broker_ends() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker:
            agent = scripted(broker)
            await agent.__aenter__()
            await agent.expect(control.Registered)
        end = await agent.ended()
        assert (end.status, end.details) == ("UNAVAILABLE", "the broker is shutting down")
        await agent.__aexit__(None, None, None)

    run(main())


def test_where_agents_connect_back_to_has_brackets(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with caplog.at_level("INFO"):
            async with Broker(broker_settings(external_host="::1", external_port=8100)):
                pass

    run(main())
    assert "connect back to [::1]:8100, without TLS" in caplog.text
