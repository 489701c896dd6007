"""A program: a bare grpc.aio server of control streams, or what calls it.

    bare.py serve KIND KEY CERT CA          says its port, ends with its standard input
    bare.py call KIND KEY CERT CA PORT      for a line `N` makes N more calls, and says `called`

KIND is `clear`, `tls`, or `lean` for TLS with gRPC's options for little memory.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio

from whip_core.channel import channel_credentials
from whip_core.control_wire import METHOD, METHOD_PATH, SERVICE
from whip_core.settings import TLSFiles

LEAN = [
    # Octets of a TLS record that is sent, and of a buffer that is held for each connection.
    # Its default, 16 KiB, is for bulk; this is the least it takes.
    ("grpc.tsi.max_frame_size", 1024),
    # A record of each connection's events, for a service that is not offered here.
    ("grpc.enable_channelz", 0),
]
AT_ONCE = 16
"""Handshakes under way."""


async def _serve_one(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def serve(kind: str, files: TLSFiles) -> None:
    server = grpc.aio.server(options=LEAN if kind == "lean" else [])
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(_serve_one)
    service = grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})
    server.add_generic_rpc_handlers((service,))
    if kind == "clear":
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", _server_credentials(files))
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)


def _server_credentials(files: TLSFiles) -> grpc.ServerCredentials:
    chain = [(files.key.read_bytes(), files.cert.read_bytes())]
    return grpc.ssl_server_credentials(chain, files.ca.read_bytes(), require_client_auth=True)


async def call(kind: str, files: TLSFiles, port: int) -> None:
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # a connection each, not one for all
        ("grpc.enable_http_proxy", 0),
        ("grpc.ssl_target_name_override", "localhost"),
    ]
    credentials = channel_credentials(files)
    kept: list[object] = []
    slots = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with slots:
            target = f"127.0.0.1:{port}"
            if kind == "clear":
                channel = grpc.aio.insecure_channel(target, options=options)
            else:
                channel = grpc.aio.secure_channel(target, credentials, options=options)
            stream = channel.stream_stream(METHOD_PATH)()
            await stream.write(b"x" * 100)
            await stream.read()
            kept.extend((channel, stream))

    while line := await asyncio.to_thread(sys.stdin.readline):
        await asyncio.gather(*(one() for _ in range(int(line))))
        print("called", flush=True)


if __name__ == "__main__":
    role, kind, key, cert, ca, *port = sys.argv[1:]
    files = TLSFiles.of(key, cert, ca)
    asyncio.run(serve(kind, files) if role == "serve" else call(kind, files, int(port[0])))
