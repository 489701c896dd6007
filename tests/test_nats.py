"""The fabric over NATS with TLS and credentials, and a start without it."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fabrics import Nats, joined
from programs import needs_program
from tunnel import (
    Log,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    server_files,
    service,
    until,
)
from whip_core import Broker, fabric_nats, hookimpl
from whip_core.errors import SettingsError, UnknownName
from whip_core.fabric_local import Exchange, LocalFabric
from whip_core.fabrics import ShippedFabrics
from whip_core.settings import FabricSettings

pytestmark = needs_program("nats-server")


async def reached(broker: Broker) -> bool:
    streams = await broker.open_connection("instance1.testdom", 80, wait=20)
    return await exchange(streams, b"hello") == b"hello"


def test_over_tls_with_client_certificates_and_a_password() -> None:
    async def main() -> None:
        server, ours = server_files("localhost"), client_files("broker1.brokers")
        async with AsyncExitStack() as stack:
            nats = Nats(
                stack,
                *("--tls", "--tlsverify", f"--tlscert={server.cert}", f"--tlskey={server.key}"),
                *(f"--tlscacert={server.ca}", "--user=broker", "--pass=secret"),
            )
            await nats.up()
            url = f"tls://broker:secret@localhost:{nats.port}"
            nats.settings = replace(
                nats.settings, url=url, ca=ours.ca, key=ours.key, cert=ours.cert
            )
            async with (
                service(echo) as port,
                joined(nats, 2) as (holder, other),
                running(agent_settings(holder.control_port, ports=f"80={port}")),
            ):
                assert await reached(other)

            nats.settings = replace(nats.settings, url=url.replace("secret", "wrong"))
            with Log() as log:
                async with joined(nats, 1):
                    assert log.having("cannot connect to NATS at localhost")
                    assert log.having("Authorization Violation")
                    assert not log.having("wrong")

    run(main())


def test_a_broker_starts_without_nats_and_joins_when_it_comes() -> None:
    async def main() -> None:
        with Log() as log:
            async with AsyncExitStack() as stack:
                nats = Nats(stack)
                async with (
                    service(echo) as port,
                    joined(nats, 2) as (holder, other),
                    running(agent_settings(holder.control_port, ports=f"80={port}")),
                ):
                    assert log.having("cannot connect to NATS at nats://127.0.0.1"), log.lines
                    assert await reached(holder)
                    await nats.up()
                    assert await reached(other)

    run(main())


def test_what_a_busy_broker_drops_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            nats = Nats(stack)
            await nats.up()
            async with (
                service(echo) as port,
                joined(nats, 2) as (holder, other),
                running(agent_settings(holder.control_port, ports=f"80={port}")),
            ):
                assert await reached(other)
                monkeypatch.setattr(fabric_nats, "MAX_ANSWERING", 0)
                with pytest.raises(UnknownName):
                    await other.open_connection("testdom", 80)
                name, why = "whip_server_fabric_dropped_messages_total", {"reason": "busy"}
                await until(lambda: holder.metrics.registry.get_sample_value(name, why) == 1)

    run(main())


def test_an_error_that_nats_sends_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric_nats, "RECONNECT_WAIT", 0.01)
    first: list[asyncio.StreamWriter] = []

    async def main() -> None:
        held_again = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """As much of a NATS server as a client needs; the first one is sent away."""
            writer.write(b'INFO {"version": "2.10.0", "headers": true, "max_payload": 65536}\r\n')
            with contextlib.closing(writer):
                while line := await reader.readline():
                    if line.startswith(b"PING"):
                        writer.write(b"PONG\r\n")
                    if b".agent." in line and not first:
                        first.append(writer)
                        writer.write(b"-ERR 'User Authentication Expired'\r\n")
                    elif b".agent." in line and writer not in first:
                        held_again.set()

        async def answer(_: bytes) -> None:
            """Nobody asks."""

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fabric = fabric_nats.NatsFabric([f"nats://127.0.0.1:{port}"], "test")
        with Log() as log:
            async with server:
                await fabric.open(answer)
                fabric.hold("agent.instance1.testdom", shared=False)
                await held_again.wait()
                assert log.having(
                    "NATS is lost (will keep trying): nats: user authentication expired"
                )
                await log.until("NATS is back")
                await fabric.close()

    run(main())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (FabricSettings(url="nats://nats.example.com:4222"), "give --fabric-tls-ca-cert-path"),
        (FabricSettings(url="nats://"), "has no host"),
        (FabricSettings(url="tls://a", ca=Path("/none")), "cannot use the fabric's TLS files"),
    ],
)
def test_settings_that_cannot_be_are_said_in_one_line(settings: FabricSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        ShippedFabrics().whip_fabric(settings)
    assert "\n" not in str(caught.value)


def test_a_plugin_chooses_the_fabric_and_leaves_others_to_the_next() -> None:
    exchange = Exchange()

    class Mine:
        def __init__(self) -> None:
            self.asked: list[str] = []

        @hookimpl
        def whip_fabric(self, settings: FabricSettings) -> LocalFabric | None:
            self.asked.append(settings.url)
            return LocalFabric(exchange) if settings.url == "mine" else None

    async def main() -> None:
        mine = Mine()
        async with Broker(broker_settings(fabric=FabricSettings(url="mine")), plugins=[mine]):
            assert len(exchange.members) == 1
        assert exchange.members == []
        with pytest.raises(SettingsError, match="has no host"):
            async with Broker(broker_settings(fabric=FabricSettings(url="tls:")), plugins=[mine]):
                raise AssertionError("it started")
        assert mine.asked == ["mine", "tls:"]

    run(main())


def test_a_plugin_that_fails_to_make_its_fabric_ends_the_start_in_one_line() -> None:
    class Mine:
        @hookimpl
        def whip_fabric(self, settings: FabricSettings) -> LocalFabric:
            if settings.url == "wrong":
                raise SettingsError("write right")
            raise KeyError(settings.url)

    async def main() -> None:
        for url, said in (
            ("mine", "plugin Mine: whip_fabric failed: KeyError('mine')"),
            ("wrong", "write right"),
        ):
            with pytest.raises(SettingsError) as raised:
                async with Broker(
                    broker_settings(fabric=FabricSettings(url=url)), plugins=[Mine()]
                ):
                    raise AssertionError("it started")
            assert str(raised.value) == said

    run(main())


def test_a_fabric_that_nobody_makes_is_said_at_the_start() -> None:
    async def main() -> None:
        settings = broker_settings(fabric=FabricSettings(url="etcd://a"))
        with pytest.raises(SettingsError, match="no plugin makes such a fabric"):
            Broker(settings)

    run(main())
