"""The control stream's messages as bytes: the one module that knows protobuf.

Field numbers and their history are in `proto/whip.proto`. What an old peer does not know
it ignores; what we do not know becomes None, and is ignored likewise.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from whip_core import control, limits
from whip_core.errors import RemoteProtocolError
from whip_core.names import printable
from whip_core.wire import whip_pb2 as pb

METHOD_PATH = "/v1.Whip/Register"
SERVICE, METHOD = "v1.Whip", "Register"
MAX_MESSAGE_SIZE = limits.DEFAULT.message_size
"""Octets of one control message, unless a broker is set otherwise."""

MAX_TEXT_LENGTH = 1024
"""Characters of a peer's reason or host: a sentence, or a name."""
MAX_ID_LENGTH = 128
"""Characters of an agent's instance id and software version."""
MAX_SECONDS = 253_402_300_799
"""The last second of the year 9999: protobuf's own bound for a Timestamp."""

_NANOSECONDS = 1_000_000_000


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, _NANOSECONDS)
    return Timestamp(seconds=seconds, nanos=nanos)


def _text(told: str) -> str:
    return printable(told, MAX_TEXT_LENGTH)


def _nanoseconds(timestamp: Timestamp) -> int:
    if not (abs(timestamp.seconds) <= MAX_SECONDS and 0 <= timestamp.nanos < _NANOSECONDS):
        raise RemoteProtocolError("a timestamp that is not a valid time")
    return timestamp.seconds * _NANOSECONDS + timestamp.nanos


def encode_agent_message(message: control.AgentMessage) -> bytes:
    wire = pb.RequestStream()
    match message:
        case control.Register():
            wire.register.MergeFrom(
                pb.Register(
                    hostname=message.hostname,
                    domain=message.domain,
                    ports=message.ports,
                    protocol_version=message.protocol_version,
                    instance_id=message.instance_id,
                    software_version=message.software_version,
                    labels=message.labels,
                    held_brokers=message.held_brokers,
                )
            )
            wire.register.SetInParent()
        case control.ConnectFailed(connection_id, text):
            wire.connect_failed.MergeFrom(
                pb.ConnectFailed(connection_iD=connection_id, error_message=text)
            )
            wire.connect_failed.SetInParent()
        case control.Pong(sequence, ping_timestamp, pong_timestamp):
            wire.pong.MergeFrom(
                pb.Pong(
                    sequence=sequence,
                    ping_timestamp=_timestamp(ping_timestamp),
                    pong_timestamp=_timestamp(pong_timestamp),
                )
            )
        case control.Draining(reason):
            wire.draining.reason = reason
            wire.draining.SetInParent()
    return wire.SerializeToString()


def decode_agent_message(data: bytes) -> control.AgentMessage | None:
    """None is a message of a later version. Raises `RemoteProtocolError` for garbage."""
    try:
        wire = pb.RequestStream.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError(f"the agent sent no control message: {error}") from error
    match wire.WhichOneof("stream"):
        case "register":
            told = wire.register
            return control.Register(
                hostname=told.hostname,
                domain=told.domain,
                ports=tuple(told.ports),
                protocol_version=told.protocol_version,
                instance_id=printable(told.instance_id, MAX_ID_LENGTH),
                software_version=printable(told.software_version, MAX_ID_LENGTH),
                labels=dict(told.labels),
                held_brokers=tuple(told.held_brokers),
            )
        case "connect_failed":
            failed = wire.connect_failed
            return control.ConnectFailed(failed.connection_iD, _text(failed.error_message))
        case "pong":
            pong = wire.pong
            return control.Pong(
                pong.sequence,
                _nanoseconds(pong.ping_timestamp),
                _nanoseconds(pong.pong_timestamp),
            )
        case "draining":
            return control.Draining(_text(wire.draining.reason))
        case _:
            return None


def encode_broker_message(message: control.BrokerMessage) -> bytes:
    wire = pb.ResponseStream()
    match message:
        case control.Connect(connection_id, host, port, local_port):
            wire.connect.MergeFrom(
                pb.Connect(connection_iD=connection_id, host=host, port=port, local_port=local_port)
            )
        case control.Ping(sequence, ping_timestamp):
            wire.ping.MergeFrom(
                pb.Ping(sequence=sequence, ping_timestamp=_timestamp(ping_timestamp))
            )
        case control.Registered():
            wire.registered.MergeFrom(
                pb.Registered(
                    protocol_version=message.protocol_version,
                    broker_id=message.broker_id,
                    session_id=message.session_id,
                    secret=message.secret,
                    reverse_host=message.reverse_host,
                    reverse_port=message.reverse_port,
                    software_version=message.software_version,
                    cluster=message.cluster,
                )
            )
        case control.Visit():
            wire.visit.MergeFrom(
                pb.Visit(
                    broker_id=message.broker_id,
                    session_id=message.session_id,
                    secret=message.secret,
                    reverse_host=message.reverse_host,
                    reverse_port=message.reverse_port,
                    connections=message.connections,
                    connection_iD=message.connection_id,
                    local_port=message.local_port,
                )
            )
        case control.AlreadyRegistered(broker_id):
            wire.already_registered.broker_id = broker_id
            wire.already_registered.SetInParent()
        case control.Park(connections):
            wire.park.connections = connections
            wire.park.SetInParent()
        case control.Draining(reason):
            wire.draining.reason = reason
            wire.draining.SetInParent()
    return wire.SerializeToString()


def decode_broker_message(data: bytes) -> control.BrokerMessage | None:
    """None is a message of a later version. Raises `RemoteProtocolError` for garbage."""
    try:
        wire = pb.ResponseStream.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError(f"the broker sent no control message: {error}") from error
    match wire.WhichOneof("stream"):
        case "connect":
            told = wire.connect
            connection_id = _text(told.connection_iD)
            return control.Connect(connection_id, _text(told.host), told.port, told.local_port)
        case "ping":
            return control.Ping(wire.ping.sequence, _nanoseconds(wire.ping.ping_timestamp))
        case "registered":
            registered = wire.registered
            return control.Registered(
                protocol_version=registered.protocol_version,
                broker_id=_text(registered.broker_id),
                session_id=_text(registered.session_id),
                secret=registered.secret,
                reverse_host=_text(registered.reverse_host),
                reverse_port=registered.reverse_port,
                software_version=printable(registered.software_version, MAX_ID_LENGTH),
                cluster=_text(registered.cluster),
            )
        case "already_registered":
            return control.AlreadyRegistered(_text(wire.already_registered.broker_id))
        case "park":
            return control.Park(wire.park.connections)
        case "visit":
            visit = wire.visit
            return control.Visit(
                broker_id=_text(visit.broker_id),
                session_id=_text(visit.session_id),
                secret=visit.secret,
                reverse_host=_text(visit.reverse_host),
                reverse_port=visit.reverse_port,
                connections=visit.connections,
                connection_id=_text(visit.connection_iD),
                local_port=visit.local_port,
            )
        case "draining":
            return control.Draining(_text(wire.draining.reason))
        case _:
            return None
