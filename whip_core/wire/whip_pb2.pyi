import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestStream(_message.Message):
    __slots__ = ("register", "connect_failed", "pong", "draining")
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    CONNECT_FAILED_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    register: Register
    connect_failed: ConnectFailed
    pong: Pong
    draining: Draining
    def __init__(self, register: _Optional[_Union[Register, _Mapping]] = ..., connect_failed: _Optional[_Union[ConnectFailed, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ...) -> None: ...

class Register(_message.Message):
    __slots__ = ("hostname", "domain", "ports", "protocol_version", "instance_id", "software_version", "labels", "held_brokers")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HELD_BROKERS_FIELD_NUMBER: _ClassVar[int]
    hostname: str
    domain: str
    ports: _containers.RepeatedScalarFieldContainer[int]
    protocol_version: int
    instance_id: str
    software_version: str
    labels: _containers.ScalarMap[str, str]
    held_brokers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hostname: _Optional[str] = ..., domain: _Optional[str] = ..., ports: _Optional[_Iterable[int]] = ..., protocol_version: _Optional[int] = ..., instance_id: _Optional[str] = ..., software_version: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., held_brokers: _Optional[_Iterable[str]] = ...) -> None: ...

class ConnectFailed(_message.Message):
    __slots__ = ("connection_iD", "error_message")
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    connection_iD: str
    error_message: str
    def __init__(self, connection_iD: _Optional[str] = ..., error_message: _Optional[str] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("sequence", "ping_timestamp", "pong_timestamp")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PING_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PONG_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    ping_timestamp: _timestamp_pb2.Timestamp
    pong_timestamp: _timestamp_pb2.Timestamp
    def __init__(self, sequence: _Optional[int] = ..., ping_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., pong_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ConnectionPreamble(_message.Message):
    __slots__ = ("connection_iD",)
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    connection_iD: str
    def __init__(self, connection_iD: _Optional[str] = ...) -> None: ...

class ResponseStream(_message.Message):
    __slots__ = ("connect", "ping", "registered", "already_registered", "park", "draining", "visit")
    CONNECT_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    ALREADY_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    PARK_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    VISIT_FIELD_NUMBER: _ClassVar[int]
    connect: Connect
    ping: Ping
    registered: Registered
    already_registered: AlreadyRegistered
    park: Park
    draining: Draining
    visit: Visit
    def __init__(self, connect: _Optional[_Union[Connect, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., registered: _Optional[_Union[Registered, _Mapping]] = ..., already_registered: _Optional[_Union[AlreadyRegistered, _Mapping]] = ..., park: _Optional[_Union[Park, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., visit: _Optional[_Union[Visit, _Mapping]] = ...) -> None: ...

class Connect(_message.Message):
    __slots__ = ("connection_iD", "host", "port", "local_port")
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PORT_FIELD_NUMBER: _ClassVar[int]
    connection_iD: str
    host: str
    port: int
    local_port: int
    def __init__(self, connection_iD: _Optional[str] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., local_port: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("sequence", "ping_timestamp")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PING_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    ping_timestamp: _timestamp_pb2.Timestamp
    def __init__(self, sequence: _Optional[int] = ..., ping_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Registered(_message.Message):
    __slots__ = ("protocol_version", "broker_id", "session_id", "secret", "reverse_host", "reverse_port", "software_version", "cluster")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BROKER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    REVERSE_HOST_FIELD_NUMBER: _ClassVar[int]
    REVERSE_PORT_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    broker_id: str
    session_id: str
    secret: str
    reverse_host: str
    reverse_port: int
    software_version: str
    cluster: str
    def __init__(self, protocol_version: _Optional[int] = ..., broker_id: _Optional[str] = ..., session_id: _Optional[str] = ..., secret: _Optional[str] = ..., reverse_host: _Optional[str] = ..., reverse_port: _Optional[int] = ..., software_version: _Optional[str] = ..., cluster: _Optional[str] = ...) -> None: ...

class AlreadyRegistered(_message.Message):
    __slots__ = ("broker_id",)
    BROKER_ID_FIELD_NUMBER: _ClassVar[int]
    broker_id: str
    def __init__(self, broker_id: _Optional[str] = ...) -> None: ...

class Park(_message.Message):
    __slots__ = ("connections",)
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    connections: int
    def __init__(self, connections: _Optional[int] = ...) -> None: ...

class Visit(_message.Message):
    __slots__ = ("broker_id", "session_id", "secret", "reverse_host", "reverse_port", "connections", "connection_iD", "local_port")
    BROKER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    REVERSE_HOST_FIELD_NUMBER: _ClassVar[int]
    REVERSE_PORT_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PORT_FIELD_NUMBER: _ClassVar[int]
    broker_id: str
    session_id: str
    secret: str
    reverse_host: str
    reverse_port: int
    connections: int
    connection_iD: str
    local_port: int
    def __init__(self, broker_id: _Optional[str] = ..., session_id: _Optional[str] = ..., secret: _Optional[str] = ..., reverse_host: _Optional[str] = ..., reverse_port: _Optional[int] = ..., connections: _Optional[int] = ..., connection_iD: _Optional[str] = ..., local_port: _Optional[int] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
