"""gRPC channel options of an agent's end of a control stream."""

from __future__ import annotations

from whip_core.control_wire import MAX_MESSAGE_SIZE

KEEPALIVE_TIME = 20.0
KEEPALIVE_TIMEOUT = 15.0
"""Seconds between an agent's HTTP/2 pings, and for their answer: it notices a dead path
within the sum. The broker sends none: its own pings (`BrokerSettings.ping_interval`) do it,
at half the cost for 10,000 agents."""

CONNECT_TIMEOUT = 10.0
"""Seconds for one attempt to connect, handshake included. A connection whose first octets
have vanished is never answered, however well the path is again: the next one may be."""

CHANNEL_OPTIONS = [
    # gRPC has no other name for how long an attempt may take.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 1000)),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_TIME * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
    # gRPC pings for measurements of its own too, and while one of those is under way it sends
    # none to keep alive: left alone, its own would have a minute.
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE),
]
