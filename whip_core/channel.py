"""gRPC channel options that both ends of a control stream use."""

from __future__ import annotations

from whip_core.control_wire import MAX_MESSAGE_SIZE

KEEPALIVE_TIME = 15.0
KEEPALIVE_TIMEOUT = 10.0
"""Seconds between HTTP/2 pings, and for their answer: a dead path is noticed within the sum."""

KEEPALIVE_OPTIONS = [
    ("grpc.keepalive_time_ms", int(KEEPALIVE_TIME * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
CHANNEL_OPTIONS = [*KEEPALIVE_OPTIONS, ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE)]
