"""What hostile agents and brokers may try on the control port, and with what they stole there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from tunnel import (
    Log,
    agent_settings,
    asked,
    broker_settings,
    client_files,
    run,
    running,
    scripted,
    until,
)
from whip_core import Broker, control
from whip_core.control_wire import (
    MAX_MESSAGE_SIZE,
    decode_agent_message,
    decode_broker_message,
    encode_agent_message,
    encode_broker_message,
)
from whip_core.errors import RemoteProtocolError
from whip_core.preamble import OldPreamble
from whip_core.testing.broker import ScriptedBroker

VECTORS = json.loads((Path(__file__).parent / "data" / "wire-vectors.json").read_text())
RECORDED = {vector["name"]: bytes.fromhex(vector["hex"]) for vector in VECTORS["control"]}
FROM_AGENT = [
    control.Register("i", "d", (1, 80), 1, "instance", "1.0", {"zone": "eu"}, held_brokers=("b",)),
    control.ConnectFailed("id", "why"),
    control.Pong(1, 2, 3),
    control.Draining("stopping"),
]
FROM_BROKER = [
    control.Registered(1, "b", "s", "secret", "host", 8000, "1.0"),
    control.Connect("id", "host", 8000, 80),
    control.Ping(7, 5),
    control.AlreadyRegistered("b"),
    control.Park(3),
    control.Draining("stopping"),
]
HOSTILE = "x\n2026-01-01 CRITICAL forged\x1b[2J\u202e"
"""A line of its own in a log, an order to a terminal, and text that runs backwards."""


# Sizes


@pytest.mark.parametrize("message", FROM_AGENT, ids=lambda message: type(message).__name__)
def test_an_agents_message_cut_at_any_length_is_refused_or_another_message(
    message: control.AgentMessage,
) -> None:
    data = encode_agent_message(message)
    for length in range(len(data)):
        with contextlib.suppress(RemoteProtocolError):
            assert decode_agent_message(data[:length]) != message


@pytest.mark.parametrize("message", FROM_BROKER, ids=lambda message: type(message).__name__)
def test_a_brokers_message_cut_at_any_length_is_refused_or_another_message(
    message: control.BrokerMessage,
) -> None:
    data = encode_broker_message(message)
    for length in range(len(data)):
        with contextlib.suppress(RemoteProtocolError):
            assert decode_broker_message(data[:length]) != message


def test_a_message_over_the_bound_ends_the_stream_and_one_at_it_does_not() -> None:
    """The unknown field is passed over, as one of a later version is; its size is not."""

    def message(size: int) -> bytes:
        start = encode_agent_message(control.Draining("bye"))
        payload = size - len(start) - 5
        return start + b"\x9a\x06" + _varint(payload, 3) + bytes(payload)

    async def main() -> None:
        async with Broker(broker_settings()) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            just = message(MAX_MESSAGE_SIZE)
            assert len(just) == MAX_MESSAGE_SIZE
            await agent.send(just)
            await agent.send(just + b"\x00")
            assert (await agent.ended()).status == "RESOURCE_EXHAUSTED"

    run(main())


def _varint(value: int, size: int) -> bytes:
    """In so many octets, as protobuf allows it."""
    octets = [value >> 7 * place & 0x7F | 0x80 for place in range(size)]
    return bytes([*octets[:-1], octets[-1] & 0x7F])


# Texts


def test_no_text_of_a_broker_can_forge_a_line_in_the_agents_log() -> None:
    async def main() -> None:
        async with ScriptedBroker() as broker:
            settings = agent_settings(broker.control_port, ports="80=1")
            with Log() as log:
                async with running(settings) as agent:
                    stream = await broker.agent()
                    await stream.receive()
                    told = control.Registered(1, HOSTILE, "s", "secret", HOSTILE, 1, HOSTILE)
                    await stream.send(told)
                    await agent.wait_registered()
                    await stream.send(control.Park(1))
                    await stream.send(control.Connect(HOSTILE[:8], HOSTILE, 1, 81))
                    await stream.send(control.Connect(HOSTILE[:8], HOSTILE, 1, 80))
                    await stream.send(control.Draining(HOSTILE))
                    lines = [await log.until("takes no more agents"), await log.until("refused")]
            assert all(line.isprintable() for line in [*lines, *log.lines])

    run(main())


# What was stolen


def test_over_tls_the_stolen_id_of_an_old_agents_dial_is_of_no_use_to_another() -> None:
    """An old agent has no secret: the certificate's names are what tells it from others."""

    async def main() -> None:
        files = client_files("instance1.testdom")
        async with (
            Broker(broker_settings(tls=True)) as broker,
            scripted(broker, RECORDED["register"], tls=files) as agent,
        ):
            await until(lambda: bool(broker.agents))
            dial = asyncio.get_running_loop().create_task(
                broker.open_connection("instance1.testdom", 80)
            )
            request = await agent.expect(control.Connect)
            stolen = OldPreamble(request.connection_id)
            for thief in ("instance2.testdom", "*.testdom"):
                reader, _ = await agent.connect_back(
                    request, introduce=stolen, then=b"not yours", tls=client_files(thief)
                )
                assert await reader.read() == b""
            assert not dial.done()
            _, writer = await agent.connect_back(request, introduce=stolen, then=b"mine")
            reader, theirs = await dial
            assert await reader.readexactly(4) == b"mine"
            writer.close()
            theirs.transport.abort()

    run(main())


def test_an_agent_cannot_fail_another_agents_dial() -> None:
    async def main() -> None:
        async with asked() as (broker, _agent, request, dial):
            hello = control.Register(
                "instance2", "testdom", (80,), protocol_version=1, instance_id="2"
            )
            async with scripted(broker, hello) as other:
                await other.expect(control.Registered)
                await other.send(control.ConnectFailed(request.connection_id, "not mine"))
                await other.send(control.Draining())
                await until(lambda: any(view.draining for view in broker.agents))
                assert not dial.done()
            dial.cancel()
            await asyncio.wait([dial])

    run(main())
