"""The addon in a mitmproxy that runs: what goes through, what breaks, and its life."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import wsproto
import wsproto.events
from mitmproxy import http, tcp
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyauth import ProxyAuth
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.exceptions import OptionsError
from mitmproxy.hooks import RunningHook
from mitmproxy.proxy import server
from mitmproxy.proxy.layers.http import HttpStream
from mitmproxy.test import taddons

from mitm import FakeBroker, answering, confdir, curl, proxy, read_head, service
from processes import free_ports, started
from programs import path_of
from tunnel import Log, agent_settings, run, running, until
from whip_addon.broken import WatchedReader
from whip_addon.commands import ADDON
from whip_addon.lifecycle import WhipAddon
from whip_addon.loopback import Loopback
from whip_core import Broker, BrokerSettings
from whip_core.errors import SettingsError, StreamCut, StreamReset
from whip_core.plugin_sources import PluginOptions
from whip_core.sockets import abort_with_reset
from whip_core.stream_reader import BrokenLastReader
from whip_core.testing import Authority

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect_through(port: int, target: str) -> Streams:
    """A tunnel through the proxy by CONNECT."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = await read_head(reader)
    assert head.startswith(b"HTTP/1.1 200 "), head
    return reader, writer


# What goes through


def test_a_request_reaches_the_service_of_its_name_however_it_is_written() -> None:
    async def main() -> None:
        async with service(answering(b"hello")) as port, proxy(broker := FakeBroker()) as p:
            broker.services["instance1.testdom"] = port
            for host in ("instance1.testdom", "Instance1.TestDom", "instance1.testdom."):
                assert (await curl("--proxy", p.url, f"http://{host}/")).output == "hello"
            assert broker.metrics.finished == [(200, "HTTP/1.1", "")] * 3

    run(main())


def test_https_is_looked_into_through_connect(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server_files(["a.testdom"])
    seen: list[str] = []

    class Script:
        def response(self, flow: http.HTTPFlow) -> None:
            seen.append(f"{flow.request.url} {flow.response.text if flow.response else None}")

    async def main() -> None:
        async with tls_service(files.cert, files.key) as port:
            broker = FakeBroker({"a.testdom": port})
            trust = {"ssl_verify_upstream_trusted_ca": str(authority.ca_cert)}
            async with proxy(broker, Script(), **trust) as p:
                ours = ("--cacert", str(confdir() / "mitmproxy-ca-cert.pem"))
                finished = await curl("--proxy", p.url, *ours, "https://a.testdom/x")
                assert (finished.output, finished.errors) == ("secret", "")

    run(main())
    assert seen == ["https://a.testdom/x secret"]


def test_https_is_looked_into_also_where_the_proxy_has_tls_of_its_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files, door = authority.server_files(["a.testdom"]), authority.server_files()

    async def main() -> None:
        async with tls_service(files.cert, files.key) as port:
            broker = FakeBroker({"a.testdom": port})
            async with proxy(
                broker,
                ssl_verify_upstream_trusted_ca=str(authority.ca_cert),
                whip_proxy_tls=True,
                whip_proxy_tls_key_path=str(door.key),
                whip_proxy_tls_cert_path=str(door.cert),
            ) as p:
                finished = await curl(
                    *("--proxy", f"https://localhost:{p.port}"),
                    *("--proxy-cacert", str(authority.ca_cert)),
                    *("--cacert", str(confdir() / "mitmproxy-ca-cert.pem")),
                    "https://a.testdom/x",
                )
                assert (finished.output, finished.errors) == ("secret", "")

    run(main())


@asynccontextmanager
async def tls_service(cert: Path, key: Path) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with service(answering(b"secret"), ssl=context) as port:
        yield port


def test_http2_and_grpc_with_trailers_and_streams_both_ways(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server_files(["a.testdom"])

    async def double(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        async for request in requests:
            await context.write(request * 2)
        context.set_trailing_metadata((("x-last", "word"),))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "enough")

    async def main() -> None:
        grpc_server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(double)
        grpc_server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Echo", {"Double": handler}),)
        )
        credentials = grpc.ssl_server_credentials(
            [(files.key.read_bytes(), files.cert.read_bytes())]
        )
        port = grpc_server.add_secure_port("127.0.0.1:0", credentials)
        await grpc_server.start()
        broker = FakeBroker({"a.testdom": port})
        trust = {"ssl_verify_upstream_trusted_ca": str(authority.ca_cert)}
        async with proxy(broker, **trust) as p:
            mitmproxys = (confdir() / "mitmproxy-ca-cert.pem").read_bytes()
            async with grpc.aio.secure_channel(
                "a.testdom:443",
                grpc.ssl_channel_credentials(mitmproxys),
                options=[("grpc.http_proxy", p.url)],
            ) as channel:
                call = channel.stream_stream("/test.Echo/Double")()
                # Each answer comes while the request still goes on.
                for word in (b"ping", b"pong"):
                    await call.write(word)
                    assert await call.read() == word * 2
                await call.done_writing()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert caught.value.details() == "enough"
                assert ("x-last", "word") in tuple(await call.trailing_metadata())
        assert broker.metrics.finished == [(200, "HTTP/2.0", "")]
        await grpc_server.stop(None)

    run(main())


def test_websocket_messages_go_both_ways_and_are_counted_once() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        while data := await reader.read(65536):
            ws.receive_data(data)
            for event in ws.events():
                if isinstance(event, wsproto.events.Request):
                    writer.write(ws.send(wsproto.events.AcceptConnection()))
                elif isinstance(event, wsproto.events.TextMessage):
                    writer.write(ws.send(wsproto.events.TextMessage(event.data.upper())))
                elif isinstance(event, wsproto.events.CloseConnection):
                    writer.write(ws.send(event.response()))
                    return

    async def main() -> None:
        async with service(echo) as port, proxy(broker := FakeBroker()) as p:
            broker.services["a.testdom"] = port
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
            request = ws.send(wsproto.events.Request(host="a.testdom", target="/ws"))
            writer.write(request.replace(b"GET /ws", b"GET http://a.testdom/ws"))

            async def event() -> wsproto.events.Event:
                while True:
                    for found in ws.events():
                        return found
                    ws.receive_data(await reader.read(65536) or None)

            assert isinstance(await event(), wsproto.events.AcceptConnection)
            for word in ("one", "two"):
                writer.write(ws.send(wsproto.events.TextMessage(word)))
                answer = await event()
                assert isinstance(answer, wsproto.events.TextMessage)
                assert answer.data == word.upper()
            writer.write(ws.send(wsproto.events.CloseConnection(1000)))
            assert isinstance(await event(), wsproto.events.CloseConnection)
            writer.close()
            assert broker.metrics.finished == [(101, "websocket", "")]

    run(main())


def test_server_sent_events_come_one_by_one() -> None:
    async def main() -> None:
        goes_on = asyncio.Event()

        async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            writer.write(b"data: 1\n\n")
            await goes_on.wait()
            writer.write(b"data: 2\n\n")

        async with service(events) as port, proxy(FakeBroker({"a.testdom": port})) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n")
            await read_head(reader)
            assert await reader.readuntil(b"\n\n") == b"data: 1\n\n"
            goes_on.set()
            assert await reader.read() == b"data: 2\n\n"
            writer.close()

    run(main())


def test_raw_tcp_goes_through_connect_also_if_the_service_speaks_first() -> None:
    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-banner\r\n")
        writer.write(b"you said " + await reader.readline())

    async def main() -> None:
        async with service(greets) as port, proxy(broker := FakeBroker()) as p:
            broker.services["a.testdom"] = port
            reader, writer = await connect_through(p.port, "a.testdom:22")
            assert await reader.readline() == b"SSH-2.0-banner\r\n"
            writer.write(b"\x00binary\n")
            assert await reader.read() == b"you said \x00binary\n"
            writer.close()
            assert broker.metrics.finished == [(0, "tcp", "")]

    run(main())


@pytest.mark.parametrize(
    "mode", ["reverse:http://a.testdom", "socks5", "upstream:http://a.testdom"]
)
def test_other_modes_go_through_the_dial(mode: str) -> None:
    async def main() -> None:
        async with (
            service(answering(b"hello")) as port,
            proxy(broker := FakeBroker({"a.testdom": port}), mode=[mode]) as p,
        ):
            way = {"reverse": (), "socks5": ("--proxy", f"socks5h://127.0.0.1:{p.port}")}
            proxied = way.get(mode.partition(":")[0], ("--proxy", p.url))
            url = p.url if mode.startswith("reverse") else "http://a.testdom/"
            if mode.startswith("upstream"):
                url = "http://public.example/"  # that the upstream proxy, a whip name, answers
            assert (await curl(*proxied, url)).output == "hello"
            assert [dial[:2] for dial in broker.dials] == [("a.testdom", 80)]

    run(main())


def test_a_large_download_and_upload_are_whole_and_hardly_kept() -> None:
    size = 8 * 1024 * 1024
    body = bytes(range(256)) * (size // 256)
    kept: list[int] = []

    class Script:
        def response(self, flow: http.HTTPFlow) -> None:
            assert flow.response is not None
            kept.append(
                len(flow.request.raw_content or b"") + len(flow.response.raw_content or b"")
            )

        def tcp_message(self, flow: tcp.TCPFlow) -> None:
            kept.append(sum(len(message.content) for message in flow.messages[:-1]))

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        received = hashlib.sha256()
        for _ in range(0, size, 65536):
            received.update(await reader.readexactly(65536))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (size + 64))
        writer.write(received.hexdigest().encode() + body)
        await writer.drain()

    async def main() -> None:
        broker = FakeBroker()
        async with (
            service(mirror) as port,
            proxy(broker, Script(), stream_large_bodies="1m") as p,
        ):
            broker.services["a.testdom"] = port
            request = b"POST %s HTTP/1.1\r\nHost: a.testdom\r\nContent-Length: %d\r\n\r\n"
            expected = hashlib.sha256(body).hexdigest().encode() + body
            for streams, target in (
                (await asyncio.open_connection("127.0.0.1", p.port), b"http://a.testdom/"),
                (await connect_through(p.port, "a.testdom:9"), b"/"),
            ):
                reader, writer = streams
                if target == b"/":
                    writer.write(b"\x00" * 3 + b"\r\n\r\n")
                else:
                    writer.write(request % (target, size))
                writer.write(body)
                await read_head(reader)
                assert await reader.readexactly(len(expected)) == expected
                writer.close()

    run(main())
    assert max(kept) <= 1024 * 1024


# What breaks


BREAKS = [StreamReset("the other end broke the stream: it crashed"), StreamCut("cut off")]


@pytest.mark.parametrize("error", BREAKS)
@pytest.mark.parametrize("ignored", [False, True])
def test_raw_tcp_that_breaks_is_a_reset_to_the_client(error: Exception, ignored: bool) -> None:
    async def main() -> None:
        async def talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"half of it\n")
            await reader.read()

        async with (
            service(talks) as port,
            proxy(
                broker := FakeBroker({"a.testdom": port}),
                ignore_hosts=["a.testdom"] if ignored else [],
            ) as p,
        ):
            reader, writer = await connect_through(p.port, "a.testdom:22")
            writer.write(b"\x00hello\n")
            assert await reader.readline() == b"half of it\n"
            broker.break_stream(error)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


def test_a_service_that_crashes_behind_a_real_agent_is_a_reset_to_the_client() -> None:
    async def crashes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await reader.readline()
        abort_with_reset(writer.transport)

    brokers: list[Broker] = []

    def factory(settings: BrokerSettings, plugins: PluginOptions) -> Broker:
        brokers.append(Broker(settings))
        return brokers[0]

    async def main() -> None:
        ports = {"whip_tcp_listen_port": 0, "whip_grpc_listen_port": 0}
        async with (
            service(crashes) as port,
            proxy(addon=WhipAddon(factory), **ports) as p,
            running(agent_settings(brokers[0].control_port, ports=f"{port}")) as agent,
        ):
            await agent.wait_registered()
            reader, writer = await connect_through(p.port, f"instance1.testdom:{port}")
            writer.write(b"\x00hello\n")
            assert await reader.readline() == b"\x00hello\n"
            writer.write(b"crash\n")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


def test_raw_tcp_that_ends_is_an_end_to_the_client() -> None:
    async def talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all of it\n")

    async def main() -> None:
        async with service(talks) as port, proxy(FakeBroker({"a.testdom": port})) as p:
            reader, writer = await connect_through(p.port, "a.testdom:22")
            assert await reader.read() == b"all of it\n"
            writer.close()

    run(main())


@pytest.mark.parametrize("error", BREAKS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_that_ends_with_its_connection_is_not_ended_by_a_break(
    error: Exception, streamed: bool
) -> None:
    async def main() -> None:
        broker = FakeBroker()
        sent = asyncio.Event()

        class Script:
            def responseheaders(self, flow: http.HTTPFlow) -> None:
                assert flow.response is not None
                flow.response.stream = streamed
                sent.set()

        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nhalf of it\n")
            await reader.read()

        async with service(half) as port, proxy(broker, Script()) as p:
            broker.services["a.testdom"] = port
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n")
            await sent.wait()
            if streamed:
                await read_head(reader)
                assert await reader.readline() == b"half of it\n"
                broker.break_stream(error)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                assert broker.metrics.finished == [(200, "HTTP/1.1", "broken-stream")]
            else:
                broker.break_stream(error)
                assert (await read_head(reader)).startswith(b"HTTP/1.1 502 ")
                assert str(error).encode() in await reader.readline()
                assert broker.metrics.finished == [(502, "HTTP/1.1", "broken-stream")]
            writer.close()

    run(main())


def test_a_chunked_body_that_breaks_has_no_last_chunk() -> None:
    async def main() -> None:
        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_head(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
            )
            await reader.read()

        async with service(half) as port, proxy(broker := FakeBroker()) as p:
            broker.services["a.testdom"] = port
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n")
            await read_head(reader)
            assert await reader.readline() + await reader.readline() == b"5\r\nhello\r\n"
            broker.break_stream(StreamReset("crashed"))
            assert await reader.read() == b""
            writer.close()
            assert broker.metrics.finished == [(200, "HTTP/1.1", "upstream")]

    run(main())


def test_a_websocket_that_breaks_is_no_normal_closure() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        ws.receive_data(await reader.read(65536))
        [_] = ws.events()
        writer.write(ws.send(wsproto.events.AcceptConnection()))
        writer.write(ws.send(wsproto.events.TextMessage("hello")))
        await reader.read()

    async def main() -> None:
        async with service(accept) as port, proxy(broker := FakeBroker()) as p:
            broker.services["a.testdom"] = port
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
            request = ws.send(wsproto.events.Request(host="a.testdom", target="/"))
            writer.write(request.replace(b"GET /", b"GET http://a.testdom/"))
            await read_head(reader)
            await reader.readuntil(b"hello")
            broker.break_stream(StreamCut("cut off"))
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


def test_what_came_before_a_break_arrives() -> None:
    async def main() -> None:
        source = BrokenLastReader()
        broken: list[BaseException] = []
        reader = WatchedReader(source, broken.append)
        source.feed_data(b"the last bytes")
        error = StreamReset("crashed")
        source.set_exception(error)
        assert await reader.read(65536) == b"the last bytes"
        assert broken == []
        for _ in range(2):
            with pytest.raises(StreamReset):
                await reader.read(65536)
        assert broken == [error]

    run(main())


def test_a_break_that_a_write_finds_is_told_too() -> None:
    async def main() -> None:
        source = BrokenLastReader()
        broken: list[BaseException] = []
        reading = asyncio.get_running_loop().create_task(
            WatchedReader(source, broken.append).read(65536)
        )
        await asyncio.sleep(0)
        reading.cancel()
        error = StreamCut("cut off")
        source.set_exception(error)
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert broken == [error]

    run(main())


def test_what_the_proxys_end_cuts_off_is_a_reset_to_the_client() -> None:
    async def goes_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n1\n")
        await reader.read()

    async def main() -> None:
        async with service(goes_on) as port:
            async with proxy(FakeBroker({"a.testdom": port})) as p:
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                writer.write(b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n")
                await read_head(reader)
                assert await reader.readline() == b"1\n"
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


def test_a_break_between_two_requests_hurts_nobody() -> None:
    async def main() -> None:
        async with service(answering(b"ok")) as port:
            broker = FakeBroker({"a.testdom": port})
            async with proxy(broker) as p:
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                for number in (1, 2):
                    writer.write(b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n")
                    await read_head(reader)
                    assert await reader.readexactly(2) == b"ok"
                    assert len(broker.dials) == number
                    broker.break_stream(StreamReset("idle"))
                writer.close()

    run(main())


def test_an_old_peer_that_cannot_half_close_is_closed() -> None:
    class NoHalfClose(FakeBroker):
        async def open_connection(self, *arguments: object, **more: object) -> Streams:
            reader, writer = await super().open_connection(*arguments, **more)  # type: ignore[arg-type]

            def write_eof() -> None:
                raise NotImplementedError

            writer.write_eof = write_eof  # type: ignore[method-assign]
            return reader, writer

    async def main() -> None:
        ended = asyncio.Event()

        async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello\n")
            await reader.read()
            ended.set()

        async with (
            service(waits) as port,
            proxy(NoHalfClose({"a.testdom": port}), mode=["reverse:tcp://a.testdom:22"]) as p,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            assert await reader.readline() == b"hello\n"
            writer.write_eof()
            await ended.wait()
            assert await reader.read() == b""
            writer.close()

    run(main())


# Its life


def test_the_broker_runs_as_long_as_the_addon() -> None:
    async def main() -> None:
        broker = FakeBroker()
        async with proxy(broker, whip_domains=["testdom"], whip_plugins=["a", "b"]):
            assert broker.is_open
            assert broker.settings is not None
            assert broker.settings.domains == ("testdom",)
            assert broker.plugin_options.names == ("a", "b")
            assert vars(server)["asyncio"] is not asyncio
        assert not broker.is_open
        assert vars(server)["asyncio"] is asyncio

    run(main())


SCRIPT = """
from whip_addon.lifecycle import WhipAddon
import test_addon
addons = [WhipAddon(test_addon.reloaded.pop().factory)]
"""
reloaded: list[FakeBroker] = []


def test_a_script_that_is_loaded_anew_starts_when_the_old_one_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)

    async def main() -> None:
        started = asyncio.Event()
        old_was_open: list[bool] = []

        def starts() -> None:
            old_was_open.append(old.is_open)
            started.set()

        old, new = FakeBroker(), FakeBroker(on_enter=starts)
        reloaded[:] = [new, old]
        async with proxy(None, scripts=[str(path)]) as p:
            assert old.is_open
            [script] = p.master.addons.get("scriptloader").addons
            old.may_close.clear()
            script.loadscript()
            for _ in range(20):
                await asyncio.sleep(0)
            assert old_was_open == []
            old.may_close.set()
            await started.wait()
            assert old_was_open == [False]
            assert vars(server)["asyncio"] is not asyncio
            p.master.options.update(scripts=[])
            while new.is_open:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert vars(server)["asyncio"] is asyncio
            assert HttpStream.handle_protocol_error.__name__ == "handle_protocol_error"

    run(main())


def test_an_addon_that_could_not_start_leaves_nothing_behind_when_it_is_unloaded() -> None:
    def fails() -> None:
        raise SettingsError("cannot listen on port 8000")

    async def main() -> None:
        original = HttpStream.handle_protocol_error
        async with proxy(FakeBroker()) as p:
            p.master.addons.remove(p.master.addons.get("whip"))
            await until(lambda: HttpStream.handle_protocol_error is original)
            with Log() as log:
                addon = WhipAddon(FakeBroker(on_enter=fails).factory)
                p.master.addons.add(addon)
                await p.master.addons.invoke_addon(addon, RunningHook())
                assert log.having("cannot listen on port 8000")
            assert vars(server)["asyncio"] is not asyncio
            p.master.addons.remove(addon)
            await until(lambda: vars(server)["asyncio"] is asyncio)
            assert HttpStream.handle_protocol_error is original

    run(main(), logs_errors=True)


def test_what_needs_another_broker_cannot_be_changed_while_it_runs() -> None:
    async def main() -> None:
        async with service(answering(b"public")) as port, proxy(FakeBroker()) as p:
            url = f"http://127.0.0.1:{port}/"
            assert "--fallback" in (await curl("--proxy", p.url, url)).output
            p.master.options.update(whip_fallback=True)
            assert (await curl("--proxy", p.url, url)).output == "public"
            with pytest.raises(OptionsError, match="restart"):
                p.master.options.update(whip_tcp_listen_port=8001)
            assert p.master.options.whip_tcp_listen_port == 8000
            with pytest.raises(OptionsError, match="whip_wait: 'x' is not"):
                p.master.options.update(whip_wait="x")

    run(main())


def test_nothing_gets_through_once_whip_has_ended() -> None:
    async def main() -> None:
        async with service(answering(b"public")) as port, proxy(FakeBroker()) as p:
            addon = p.master.addons.get("whip")
            p.master.options.update(whip_fallback=True)
            await addon.done()
            finished = await curl("--proxy", p.url, f"http://127.0.0.1:{port}/")
            assert finished.output == ""

    run(main())


def test_x_forwarded_for_is_extended_or_made_for_a_service_of_whips() -> None:
    heads: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_head(reader)).lower())
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def main() -> None:
        async with service(listen) as port, proxy(FakeBroker({"a.testdom": port})) as p:
            header = ("--header", "X-Forwarded-For: 192.0.2.1, 192.0.2.2")
            await curl("--proxy", p.url, *header, "http://a.testdom/")
            await curl("--proxy", p.url, "http://a.testdom/")

    run(main())
    assert b"\r\nx-forwarded-for: 192.0.2.1, 192.0.2.2, 127.0.0.1\r\n" in heads[0]
    assert b"\r\nx-forwarded-for: 127.0.0.1\r\n" in heads[1]


# In processes of its own


ADDRESS = ("--set", "whip_external_tcp_address=localhost")
PLAIN = (*ADDRESS, "--set", "whip_tls=false")
NO_SEAM = """
from mitmproxy.proxy import server
from mitmproxy.proxy.layers.http import HttpStream

async def open_connection(self, command): ...

server.ConnectionHandler.open_connection = open_connection
"""


def mitmdump(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(path_of("mitmdump"), "--set", f"confdir={confdir()}"),
            *("--listen-host", "127.0.0.1", "--listen-port", "0"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give whip_external_tcp_address: "),
        (ADDRESS, "TLS is on, so give whip_tls_key_path, whip_tls_cert_path"),
        ((*ADDRESS, "--set", "whip_tcp_listen_port=abc"), "whip_tcp_listen_port: "),
        ((*PLAIN, "--set", "whip_fallback=perhaps"), "whip_fallback"),
        ((*PLAIN, "--set", "whip_fallbak=true"), "no option whip_fallbak: did you mean"),
        ((*PLAIN, "--set", "whip_dial_timeout=soon"), "whip_dial_timeout: 'soon' is not"),
        ((*PLAIN, "--set", "whip_plugins=nothing.here"), "cannot load plugin nothing.here: "),
        ((*PLAIN, "--set", "whip_plugin_set=a.b=c"), "a.b: there is no plugin a"),
        ((*PLAIN, "--set", "whip_proxy_auth_username=me"), "needs a password"),
        ((*PLAIN, "-s", "second.py"), "the addon is loaded twice"),
        (("-s", "no_seam.py", *PLAIN), "in a way that whip does not know"),
    ],
)
def test_what_is_wrong_ends_mitmdump_with_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    (tmp_path / "no_seam.py").write_text(NO_SEAM)
    (tmp_path / "second.py").write_text(ADDON.read_text())
    first = arguments[:2] if arguments[:1] == ("-s",) else ()
    finished = mitmdump(tmp_path, *first, "-s", str(ADDON), *arguments[len(first) :])
    assert finished.returncode == 1
    [line] = [line for line in finished.stdout.splitlines() if "whip:" in line]
    assert says in line.replace("Failed to parse option ", "")
    assert "Traceback" not in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("arguments", "host", "says"),
    [
        ((), "127.0.0.1", "asks for no password, so it listens on 127.0.0.1 only"),
        (("--listen-host=0.0.0.0",), "*", "listens on 0.0.0.0 without a password"),
        (("--set", "proxyauth=me:secret"), "*", ""),
    ],
)
def test_without_a_password_mitmdump_listens_on_loopback_unless_it_is_told_otherwise(
    arguments: tuple[str, ...], host: str, says: str
) -> None:
    proxy_port, *ports = free_ports(3)
    settings = (f"whip_grpc_listen_port={ports[0]}", f"whip_tcp_listen_port={ports[1]}")
    off = ("whip_metrics_listen=", "whip_control_socket=", f"confdir={confdir()}")

    async def main() -> None:
        async with started(
            *("mitmdump", "-s", str(ADDON), f"--listen-port={proxy_port}", *PLAIN, *arguments),
            *(part for each in (*settings, *off) for part in ("--set", each)),
        ) as process:
            await process.says("agents register at port")
            [*_, listening] = [line for line in process.lines if "proxy listening at" in line]
            assert listening.endswith(f" {host}:{proxy_port}.")
            told = [line for line in process.lines if "password" in line]
            assert [says in line for line in told] == [True] * bool(says)

    run(main())


@pytest.mark.parametrize(
    ("mode", "host"),
    [
        (["regular"], "127.0.0.1"),
        (["socks5", "reverse:http://a.testdom@8081"], "127.0.0.1"),
        (["regular", "wireguard@51821"], ""),
    ],
)
def test_what_redirected_packets_come_to_is_left_as_it_is(mode: list[str], host: str) -> None:
    async def main() -> None:
        with taddons.context(ProxyAuth(), Proxyserver(), NextLayer()) as mitmproxy:
            mitmproxy.options.update(mode=mode)
            mitmproxy.configure(Loopback())
            assert mitmproxy.options.listen_host == host

    run(main())


def test_a_port_in_use_ends_mitmdump_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = mitmdump(
            tmp_path, "-s", str(ADDON), *PLAIN, "--set", f"whip_tcp_listen_port={port}"
        )
    assert finished.returncode == 1
    [line] = [line for line in finished.stdout.splitlines() if "whip:" in line]
    assert f"{port}" in line
    assert "Traceback" not in finished.stdout + finished.stderr


def test_a_mitmproxy_without_whip_says_where_it_is_missing(tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "addon.py"
    alone.parent.mkdir()
    alone.write_text(ADDON.read_text().replace("whip_addon", "whip_missing"))
    finished = mitmdump(tmp_path, "-s", str(alone))
    assert finished.returncode == 1
    assert "No module named 'whip_missing'" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr
