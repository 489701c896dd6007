"""The recorded bytes of an existing agent, in both directions, and our own additions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whip_core import control
from whip_core.control_wire import (
    METHOD_PATH,
    decode_agent_message,
    decode_broker_message,
    encode_agent_message,
    encode_broker_message,
)
from whip_core.errors import RemoteProtocolError

VECTORS = json.loads((Path(__file__).parent / "data" / "wire-vectors.json").read_text())
RECORDED = {vector["name"]: bytes.fromhex(vector["hex"]) for vector in VECTORS["control"]}

PING_TIME = 1_700_000_000_000_000_005
FROM_AGENT = {
    "register": control.Register("instance1", "testdom", (5051, 80)),
    "connect_failed": control.ConnectFailed(
        "conn-id-2",
        "failed to local connect to 127.0.0.1:5999: dial tcp 127.0.0.1:5999: "
        "connect: connection refused",
    ),
}
FROM_BROKER = {
    "ping": control.Ping(7, PING_TIME),
    "connect": control.Connect("conn-id-1", "127.0.0.1", 18055, 5051),
}


@pytest.mark.parametrize("name", FROM_AGENT)
def test_a_broker_reads_what_an_existing_agent_sends(name: str) -> None:
    assert decode_agent_message(RECORDED[name]) == FROM_AGENT[name]


@pytest.mark.parametrize("name", FROM_AGENT)
def test_an_agent_without_extensions_sends_the_same_bytes(name: str) -> None:
    assert encode_agent_message(FROM_AGENT[name]) == RECORDED[name]


@pytest.mark.parametrize("name", FROM_BROKER)
def test_an_agent_reads_what_an_existing_broker_sends(name: str) -> None:
    assert decode_broker_message(RECORDED[name]) == FROM_BROKER[name]


@pytest.mark.parametrize("name", FROM_BROKER)
def test_a_broker_sends_an_old_agent_the_same_bytes(name: str) -> None:
    assert encode_broker_message(FROM_BROKER[name]) == RECORDED[name]


def test_the_recorded_pong_echoes_the_ping_to_the_nanosecond() -> None:
    pong = decode_agent_message(RECORDED["pong"])
    assert isinstance(pong, control.Pong)
    assert (pong.sequence, pong.ping_timestamp) == (7, PING_TIME)
    assert encode_agent_message(pong) == RECORDED["pong"]


def test_the_method_is_the_one_that_existing_agents_call() -> None:
    assert VECTORS["grpc_method"] == METHOD_PATH


OUR_AGENT_MESSAGES = [
    control.Register(
        "i", "d", (1,), 1, "instance", "1.0", {"zone": "eu"}, held_brokers=("b1", "b2")
    ),
    control.Register("", "", ()),
    control.ConnectFailed("", ""),
    control.Pong(0, 0, 0),
    control.Draining("restart"),
    control.Draining(),
]
OUR_BROKER_MESSAGES = [
    control.Registered(1, "b", "s", "secret", "host", 8000, "1.0"),
    control.AlreadyRegistered("b"),
    control.Park(3),
    control.Park(0),
    control.Visit("broker", "session", "secret", "host", 8000, 2),
    control.Visit("broker", "session", "secret", "host", 8000, 0, "connection", 80),
    control.Draining("restart"),
]


@pytest.mark.parametrize("message", OUR_AGENT_MESSAGES)
def test_an_agent_message_survives_the_wire(message: control.AgentMessage) -> None:
    assert decode_agent_message(encode_agent_message(message)) == message


@pytest.mark.parametrize("message", OUR_BROKER_MESSAGES)
def test_a_broker_message_survives_the_wire(message: control.BrokerMessage) -> None:
    assert decode_broker_message(encode_broker_message(message)) == message


def test_a_message_of_a_later_version_is_ignored_and_garbage_is_not() -> None:
    unknown_field_99 = bytes.fromhex("9a0600")
    assert decode_agent_message(unknown_field_99) is None
    assert decode_broker_message(unknown_field_99) is None
    with pytest.raises(RemoteProtocolError):
        decode_agent_message(b"GET / HTTP/1.1")
    with pytest.raises(RemoteProtocolError):
        decode_broker_message(b"\xff\xff\xff")
