"""Trailers of HTTP/1 messages: mitmproxy alone hangs at them, through whip nobody does."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from mitmproxy.proxy.layers.http import _http1

from mitm import FakeBroker, confdir, proxy, read_head, service
from tunnel import run
from whip_addon.trailers import Trailers
from whip_core.testing import Authority

PATIENCE = 10.0
BODY = b"2\r\nhi\r\n0\r\n"
TRAILERS = b"X-Checksum: 1\r\nContent-Length: 7\r\n"
POST = (
    b"POST http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n"
    b"Transfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n\r\n"
)


class Service:
    """Answers a chunked request with a chunked response; either may have trailers."""

    def __init__(self, trailers: bytes = b"") -> None:
        self.bodies: list[bytes] = []
        self._trailers = trailers

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                await read_head(reader)
                self.bodies.append(await reader.readuntil(b"0\r\n") + await _trailers(reader))
            except asyncio.IncompleteReadError:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(BODY + self._trailers + b"\r\n")
            await writer.drain()


async def _trailers(reader: asyncio.StreamReader) -> bytes:
    """What follows the last chunk, with the empty line at its end."""
    lines = b""
    while not lines.endswith(b"\r\n\r\n") and lines != b"\r\n":
        lines += await reader.readline()
    return lines


@pytest.mark.parametrize("stream", [{}, {"stream_large_bodies": "1"}], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("asked", "answered"),
    [(TRAILERS, b""), (b"", TRAILERS), (TRAILERS, TRAILERS)],
    ids=["request", "response", "both"],
)
def test_a_chunked_message_arrives_whole_and_its_trailers_end_at_the_proxy(
    asked: bytes, answered: bytes, stream: dict[str, str]
) -> None:
    async def main() -> None:
        there = Service(answered)
        async with service(there) as port, proxy(FakeBroker({"a.testdom": port}), **stream) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            async with asyncio.timeout(PATIENCE):
                for _ in range(2):  # and the connection is good for the next one
                    writer.write(POST + BODY + asked + b"\r\n")
                    assert (await read_head(reader)).startswith(b"HTTP/1.1 200 ")
                    assert b"hi" in await reader.readuntil(b"0\r\n")
                    assert await _trailers(reader) == b"\r\n"
            assert there.bodies == [BODY + b"\r\n"] * 2
            writer.close()

    run(main())


def test_trailers_that_are_none_end_the_connection() -> None:
    async def main() -> None:
        async with service(Service()) as port, proxy(FakeBroker({"a.testdom": port})) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(POST + BODY + b"no trailer\r\n\r\n")
            async with asyncio.timeout(PATIENCE):
                assert b" 200 " not in await reader.read()
            writer.close()

    run(main())


def test_an_http2_request_with_trailers_reaches_an_http1_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Authority(tmp_path).server_files(["a.testdom"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.cert, files.key)
    options = {"connection_strategy": "lazy", "ssl_insecure": True}
    trusting = ssl.create_default_context(cafile=str(confdir() / "mitmproxy-ca-cert.pem"))
    trusting.set_alpn_protocols(["h2"])
    trusting.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        assert await reader.readexactly(2) == b"hi"
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def main() -> None:
        async with (
            service(answer, ssl=tls) as port,
            proxy(FakeBroker({"a.testdom": port}), **options) as p,
            asyncio.timeout(PATIENCE),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"CONNECT a.testdom:443 HTTP/1.1\r\nHost: a.testdom:443\r\n\r\n")
            await read_head(reader)
            await writer.start_tls(trusting, server_hostname="a.testdom")
            connection = h2.connection.H2Connection(h2.config.H2Configuration())
            connection.initiate_connection()
            stream = connection.get_next_available_stream_id()
            names = {":method": "POST", ":path": "/", ":scheme": "https", ":authority": "a.testdom"}
            connection.send_headers(stream, [*names.items(), ("content-length", "2")])
            connection.send_data(stream, b"hi")
            connection.send_headers(stream, [("x-checksum", "1")], end_stream=True)
            writer.write(connection.data_to_send())
            status = b""
            while not status:
                for event in connection.receive_data(await reader.read(65536)):
                    if isinstance(event, h2.events.ResponseReceived):
                        status = dict(event.headers)[b":status"]
                writer.write(connection.data_to_send())
            assert status == b"204"
            writer.transport.abort()

    run(main())
    assert "crashed" not in caplog.text


def test_mitmproxys_own_way_is_back_when_the_last_addon_has_gone() -> None:
    before = (_http1.make_body_reader, _http1.Http1Connection._handle_event)
    first, second = Trailers(), Trailers()
    first.install()
    assert _http1.make_body_reader is not before[0]
    second.install()
    first.uninstall()
    first.uninstall()
    assert _http1.make_body_reader is not before[0]
    second.uninstall()
    assert (_http1.make_body_reader, _http1.Http1Connection._handle_event) == before
