"""What an agent's end of a control stream is made with: gRPC's options and credentials."""

from __future__ import annotations

import grpc

from whip_core.control_wire import MAX_MESSAGE_SIZE
from whip_core.settings import TLSFiles

KEEPALIVE_TIME = 25.0
KEEPALIVE_TIMEOUT = 15.0
"""Seconds without a word after which an agent sends an HTTP/2 ping, and for its answer: it
notices a dead path within the sum. A broker that sends its own pings every 20 s
(`BrokerSettings.ping_interval`) is never asked, which would double their cost."""

CONNECT_TIMEOUT = 10.0
"""Seconds for one attempt to connect, handshake included. A connection whose first octets
have vanished is never answered, however well the path is again: the next one may be."""

CHANNEL_OPTIONS = [
    # gRPC has no other name for how long an attempt may take.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 1000)),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_TIME * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
    # The bound that counts for their answers, too: left alone, it is a minute.
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
    # A ping for each message, to find out how much the path could carry.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE),
]


def channel_credentials(files: TLSFiles) -> grpc.ChannelCredentials:
    """Raises `OSError` for a file that cannot be read."""
    return channel_credentials_of(
        files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
    )


def channel_credentials_of(ca: bytes, key: bytes, cert: bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=cert
    )
