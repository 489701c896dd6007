"""Recorded bytes of existing agents and brokers, fed to the real Broker and the real Agent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tunnel import (
    Log,
    Watch,
    agent_settings,
    asked,
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
)
from whip_core import Broker, control
from whip_core.control_wire import decode_agent_message, encode_agent_message
from whip_core.errors import ServiceRefused, StreamCut
from whip_core.testing.agent import ScriptedAgent
from whip_core.testing.broker import ScriptedBroker, ScriptedControlStream, read_old_preamble

VECTORS = json.loads((Path(__file__).parent / "data" / "wire-vectors.json").read_text())
RECORDED = {vector["name"]: bytes.fromhex(vector["hex"]) for vector in VECTORS["control"]}
PREAMBLE = VECTORS["data_preamble"]["utf8"].encode()
SSH = b"SSH-2.0-OpenSSH_9.2p1\r\n"


def recorded_for(name: str, connection_id: str) -> bytes:
    """A recorded ConnectFailed with another dial's id."""
    message = decode_agent_message(RECORDED[name])
    assert isinstance(message, control.ConnectFailed)
    return encode_agent_message(control.ConnectFailed(connection_id, message.message))


def preamble_for(request: control.Connect) -> bytes:
    """The recorded preamble with another dial's id."""
    return PREAMBLE.replace(b"conn-id-1", request.connection_id.encode())


# An existing agent, our broker


@asynccontextmanager
async def old_agent(
    hello: bytes = RECORDED["register"], *, tls: bool = False
) -> AsyncIterator[tuple[Broker, ScriptedAgent]]:
    watch = Watch()
    async with (
        Broker(broker_settings(tls=tls or None), plugins=[watch]) as broker,
        scripted(broker, hello, tls=client_files() if tls else None) as agent,
    ):
        await watch.until(lambda: len(watch.joined) == 1)
        yield broker, agent


async def dial_old(
    broker: Broker, agent: ScriptedAgent, then: bytes = b"", port: int = 5051
) -> tuple[
    tuple[asyncio.StreamReader, asyncio.StreamWriter],
    tuple[asyncio.StreamReader, asyncio.StreamWriter],
]:
    """Both ends of a stream, the caller's and the agent's; `then` is right behind the preamble."""
    async with asyncio.TaskGroup() as group:
        dial = group.create_task(broker.open_connection("instance1.testdom", port))
        request = await agent.expect(control.Connect)
        assert request.local_port == port
        theirs = await agent.connect_back(request, introduce=preamble_for(request), then=then)
    return dial.result(), theirs


def test_a_recorded_registration_makes_an_agent_that_is_sent_nothing_new() -> None:
    async def main() -> None:
        async with old_agent() as (broker, agent):
            [view] = broker.agents
            assert str(view.name) == "instance1.testdom"
            assert (view.ports, view.protocol_version) == ((5051, 80), 0)
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 80)
            )
            await agent.expect(control.Connect)
            # An old agent takes any message it does not know for a fault of ours.
            assert agent.registered is None
            assert "received=[]" in repr(agent)
            dial.cancel()
            await asyncio.wait([dial])

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
def test_bytes_right_behind_the_old_preamble_are_the_callers(tls: bool) -> None:
    async def main() -> None:
        async with old_agent(tls=tls) as (broker, agent):
            (reader, writer), (their_reader, their_writer) = await dial_old(broker, agent, SSH)
            assert await reader.readexactly(len(SSH)) == SSH
            writer.write(b"hello")
            assert await their_reader.readexactly(5) == b"hello"
            their_writer.write(b"}{ and so on")
            assert await reader.readexactly(12) == b"}{ and so on"
            writer.close()
            await writer.wait_closed()
            assert await their_reader.read() == b""

    run(main())


def test_an_old_preamble_may_come_byte_by_byte() -> None:
    async def main() -> None:
        async with old_agent() as (broker, agent):
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 80)
            )
            request = await agent.expect(control.Connect)
            reader, writer = await agent.connect_back(request, introduce=b"{")
            for byte in preamble_for(request)[1:] + SSH:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            streams = await dial
            writer.write_eof()
            assert await exchange(streams, b"") == SSH
            assert await reader.read() == b""

    run(main())


def test_in_plaintext_the_directions_of_an_old_agents_stream_end_separately() -> None:
    async def main() -> None:
        async with old_agent() as (broker, agent):
            (reader, writer), (their_reader, their_writer) = await dial_old(broker, agent)
            writer.write(b"question")
            writer.write_eof()
            assert await their_reader.read() == b"question"
            their_writer.write(b"answer")
            their_writer.close()
            assert await reader.read() == b"answer"
            writer.close()
            await writer.wait_closed()

    run(main())


def test_over_tls_the_end_of_an_old_agents_direction_ends_the_stream() -> None:
    async def main() -> None:
        async with old_agent(tls=True) as (broker, agent):
            (reader, writer), (_, their_writer) = await dial_old(broker, agent)
            assert not writer.can_write_eof()
            their_writer.write(b"all there is")
            their_writer.close()
            assert await reader.read() == b"all there is"
            await writer.wait_closed()

    run(main())


def test_over_tls_a_connection_of_an_old_agent_that_is_cut_is_no_end() -> None:
    async def main() -> None:
        async with old_agent(tls=True) as (broker, agent):
            (reader, writer), (_, their_writer) = await dial_old(broker, agent)
            their_writer.write(b"not all")
            assert await reader.readexactly(7) == b"not all"
            # Behind TLS's back: no close_notify.
            their_writer.get_extra_info("socket").shutdown(1)
            with pytest.raises(StreamCut):
                await reader.read()
            writer.close()

    run(main())


def test_an_old_agent_opens_one_connection_for_each_dial_and_none_is_parked() -> None:
    async def main() -> None:
        async with old_agent() as (broker, agent):
            for _ in range(3):
                streams, (their_reader, their_writer) = await dial_old(broker, agent, b"x")
                their_writer.write_eof()
                assert await exchange(streams, b"y") == b"x"
                assert await their_reader.read() == b"y"
                assert broker.agents[0].parked == 0
            assert "received=[]" in repr(agent)

    run(main())


def test_the_late_connection_of_a_cancelled_dial_is_closed_without_a_byte() -> None:
    """An old agent would hand anything we say on to its service."""

    async def main() -> None:
        async with old_agent() as (broker, agent):
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 80)
            )
            request = await agent.expect(control.Connect)
            dial.cancel()
            await asyncio.wait([dial])
            reader, _ = await agent.connect_back(request, introduce=preamble_for(request))
            assert await reader.read() == b""

    run(main())


def test_the_text_of_a_recorded_connect_failed_reaches_the_caller() -> None:
    async def main() -> None:
        async with old_agent() as (broker, agent):
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 5051)
            )
            request = await agent.expect(control.Connect)
            await agent.send(recorded_for("connect_failed", request.connection_id))
            with pytest.raises(ServiceRefused) as raised:
                await dial
            assert str(raised.value) == (
                "instance1.testdom:5051: failed to local connect to 127.0.0.1:5999: "
                "dial tcp 127.0.0.1:5999: connect: connection refused"
            )

    run(main())


def test_an_old_agents_pong_gives_its_round_trip() -> None:
    watch = Watch()

    async def main() -> None:
        settings = broker_settings(ping_interval=0.02)
        async with (
            Broker(settings, plugins=[watch]) as broker,
            scripted(broker, RECORDED["register"]),
        ):
            await watch.until(lambda: len(watch.round_trips) > 1)
            assert broker.agents[0].round_trip is not None

    run(main())


def test_an_agent_of_ours_cannot_use_the_old_preamble() -> None:
    """Else the session's secret would protect nothing."""

    async def main() -> None:
        async with asked() as (_broker, agent, request, dial):
            reader, _ = await agent.connect_back(request, introduce=preamble_for(request))
            await reader.read()  # refused and closed
            assert not dial.done()
            dial.cancel()
            await asyncio.wait([dial])

    run(main())


# Our agent, an existing broker


@asynccontextmanager
async def old_broker(
    ports: str, *, tls: bool = False
) -> AsyncIterator[tuple[ScriptedBroker, ScriptedControlStream]]:
    files = server_files("localhost") if tls else None
    async with ScriptedBroker(tls=files) as broker:
        settings = agent_settings(
            broker.control_port, ports=ports, tls=client_files() if tls else None
        )
        with Log() as log:
            async with running(settings):
                agent = await broker.agent()
                hello = decode_agent_message(await agent.receive() or b"")
                assert isinstance(hello, control.Register)
                assert hello.ports == tuple(settings.exposure)
                await agent.send(RECORDED["ping"])
                await log.until("registered instance1.testdom at the old broker")
                assert decode_agent_message(await agent.receive() or b"") is not None  # its pong
                yield broker, agent


def test_what_an_old_broker_reads_of_our_registration_is_the_recorded_one() -> None:
    """An old broker skips the fields that it does not know, which are those from 16 up."""
    ours = encode_agent_message(registration("instance1", 5051, 80, labels={"zone": "eu"}))
    recorded = RECORDED["register"]
    # Both are field 1 of the oneof with a length; the known fields come first.
    assert (ours[0], recorded[0]) == (0x0A, 0x0A)
    assert ours[2:].startswith(recorded[2:])
    behind = ours[len(recorded) :]
    assert behind[0] & 0x80  # a tag of two octets: a field from 16 up


def test_a_recorded_ping_is_answered_with_its_own_time_and_ours() -> None:
    async def main() -> None:
        async with old_broker("80") as (_, agent):
            await agent.send(RECORDED["ping"])
            pong = decode_agent_message(await agent.receive() or b"")
            recorded = decode_agent_message(RECORDED["pong"])
            assert isinstance(pong, control.Pong)
            assert isinstance(recorded, control.Pong)
            assert (pong.sequence, pong.ping_timestamp) == (
                recorded.sequence,
                recorded.ping_timestamp,
            )
            assert pong.pong_timestamp > recorded.pong_timestamp

    run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
def test_a_connect_is_answered_with_exactly_the_recorded_preamble_and_the_services_bytes(
    tls: bool,
) -> None:
    async def main() -> None:
        async with (
            service(saying(SSH)) as port,
            old_broker(f"5051={port}", tls=tls) as (broker, agent),
        ):
            await agent.send(control.Connect("conn-id-1", "localhost", broker.reverse_port, 5051))
            reader, _ = await broker.reverse_connection()
            assert await reader.read() == PREAMBLE + SSH

    run(main())


def test_each_connect_of_an_old_broker_has_its_own_connection_and_half_closes() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            old_broker(f"5051={port}") as (broker, agent),
        ):
            for number in range(3):
                name = f"conn-id-{number}"
                await agent.send(control.Connect(name, "127.0.0.1", broker.reverse_port, 5051))
                reader, writer = await broker.reverse_connection()
                assert await read_old_preamble(reader) == name
                writer.write(b"{question}")
                writer.write_eof()
                assert await reader.read() == b"{question}"

    run(main())


def test_the_recorded_connect_is_refused_where_its_port_is_not_exposed() -> None:
    async def main() -> None:
        async with old_broker("80") as (_, agent):
            await agent.send(RECORDED["connect"])
            answer = decode_agent_message(await agent.receive() or b"")
            assert answer == control.ConnectFailed(
                "conn-id-1", "this agent does not expose port 5051"
            )

    run(main())


def test_an_old_broker_is_told_which_service_is_down() -> None:
    async def main() -> None:
        async with service(echo) as port:
            pass
        async with old_broker(f"5051={port}") as (broker, agent):
            await agent.send(control.Connect("conn-id-1", "127.0.0.1", broker.reverse_port, 5051))
            answer = decode_agent_message(await agent.receive() or b"")
            assert isinstance(answer, control.ConnectFailed)
            assert answer.connection_id == "conn-id-1"
            assert f"the agent cannot reach its service 127.0.0.1:{port}" in answer.message

    run(main())
