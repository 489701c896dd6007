"""The seam in mitmproxy: the dial in place of its connections, and what its failures answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.flow import Error
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.proxy import server
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpStream
from mitmproxy.test import tflow

from mitm import FakeBroker, answering, confdir, curl, proxy, service
from tunnel import run
from whip_addon import answers, seam
from whip_addon.answers import Answer
from whip_addon.callers import Callers
from whip_addon.pins import Pins
from whip_addon.reuse import Reuse
from whip_core.errors import (
    AgentGone,
    DialError,
    DialTimeout,
    NotAuthorized,
    ServiceRefused,
    UnknownName,
)


async def _dial(host: str, port: int, local_addr: tuple[str, int] | None) -> tuple[Any, Any]:
    return (host, port), local_addr


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    yield
    assert vars(server)["asyncio"] is asyncio, "a test left the seam installed"
    assert HttpStream.handle_protocol_error.__name__ == "handle_protocol_error"
    assert HttpStream.start_request_stream.__name__ == "start_request_stream"


def _asyncio_of_mitmproxy() -> Any:
    return vars(server)["asyncio"]


def test_the_dial_takes_the_place_of_open_connection_and_of_nothing_else() -> None:
    with seam.installed(_dial):
        replaced = _asyncio_of_mitmproxy()
        opened = run(replaced.open_connection("a.b", 80, local_addr=("::1", 1)))
        assert opened == (("a.b", 80), ("::1", 1))
        assert replaced.sleep is asyncio.sleep
        assert replaced.CancelledError is asyncio.CancelledError
        assert asyncio.open_connection is not replaced.open_connection


def test_mitmproxys_own_way_is_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), seam.installed(_dial):
        raise ZeroDivisionError
    assert _asyncio_of_mitmproxy() is asyncio


def test_a_second_dial_is_refused_and_the_first_stays() -> None:
    async def other(*_: object) -> tuple[Any, Any]:
        raise AssertionError

    with seam.installed(_dial):
        first = _asyncio_of_mitmproxy()
        with pytest.raises(seam.SeamTaken, match="load whip's addon once"):
            seam.install(other)
        seam.uninstall(other)
        assert _asyncio_of_mitmproxy() is first


def test_a_retired_dial_may_be_replaced_and_then_leaves_its_successor_alone() -> None:
    async def successor(*_: object) -> tuple[Any, Any]:
        return None, None

    seam.install(_dial)
    seam.retire(_dial)
    seam.install(successor)
    seam.uninstall(_dial)
    assert _asyncio_of_mitmproxy().dial is successor
    seam.uninstall(successor)


def test_a_mitmproxy_that_chooses_connections_in_another_way_is_refused() -> None:
    question = "connection_spec_matches"
    before = vars(GetHttpConnection)[question]

    def reuse() -> Reuse:
        return Reuse(lambda: None, Callers(lambda: None), Pins())

    with pytest.MonkeyPatch.context() as without:
        without.delattr(GetHttpConnection, question)
        with pytest.raises(seam.SeamNotFound, match="chooses connections in an unknown way"):
            reuse().install()
    one = reuse()
    one.install()
    assert vars(GetHttpConnection)[question] is not before
    one.uninstall()
    assert vars(GetHttpConnection)[question] is before


async def _opens_in_another_way(self: object, command: object) -> None:
    await asyncio.get_running_loop().create_connection(asyncio.Protocol, "a.b", 80)


async def _opens_by_another_name(self: Any, command: object) -> None:
    asyncio.current_task()
    await self.open_connection("a.b", 80)


@pytest.mark.parametrize("changed", [_opens_in_another_way, _opens_by_another_name, None])
def test_a_mitmproxy_without_the_seam_is_refused(
    monkeypatch: pytest.MonkeyPatch, changed: object
) -> None:
    monkeypatch.setattr(server.ConnectionHandler, "open_connection", changed)
    with pytest.raises(seam.SeamNotFound, match="in a way that whip does not know"):
        seam.install(_dial)


def test_an_answer_is_saved_and_copied_as_text(tmp_path: Path) -> None:
    flow = tflow.tflow(err=True)
    flow.error = Error(Answer.to(DialTimeout("too slow")))
    assert flow.copy().error.msg == "too slow"
    with (tmp_path / "flows").open("wb") as file:
        FlowWriter(file).add(flow)
    with (tmp_path / "flows").open("rb") as file:
        [read] = FlowReader(file).stream()
    assert read.error is not None
    assert read.error.msg == "too slow"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DialTimeout("a.testdom:80: no answer within 10 s"), 504),
        (NotAuthorized("a.testdom:80: not allowed: no"), 403),
        (AgentGone("a.testdom:80: the agent left"), 502),
        (ServiceRefused("a.testdom:80: connection refused"), 502),
    ],
)
def test_a_failed_dial_answers_its_status_and_text(error: DialError, status: int) -> None:
    seen: list[Error | None] = []

    class Script:
        def error(self, flow: http.HTTPFlow) -> None:
            seen.append(flow.error)

    async def main() -> None:
        broker = FakeBroker({"a.testdom": error})
        async with proxy(broker, Script(), ssl_insecure=True, connection_strategy="lazy") as p:
            write = ("--write-out", " %{http_code} %{http_version}", "--proxy", p.url)
            plain = await curl(*write, "http://a.testdom/")
            assert plain.output.endswith(f" {status} 1.1")
            assert str(error) in plain.output
            # The client's TLS is done before the request, and so before the dial.
            trusting = ("--cacert", str(confdir() / "mitmproxy-ca-cert.pem"))
            second = await curl(*write, *trusting, "--http2", "https://a.testdom/")
            assert second.output.endswith(f" {status} 2")
            assert str(error) in second.output
            assert broker.metrics.finished == [
                (status, "HTTP/1.1", error.reason),
                (status, "HTTP/2.0", error.reason),
            ]

    run(main())
    assert [str(found) for found in seen] == [str(error)] * 2


@pytest.mark.parametrize("error", [DialTimeout("too slow"), UnknownName("who?")])
def test_a_failed_connect_answers_its_status_and_text(error: DialError) -> None:
    async def main() -> bytes:
        async with proxy(FakeBroker({"a.testdom": error})) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"CONNECT a.testdom:22 HTTP/1.1\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {error.http_status} ".encode())
            body = await reader.readexactly(len(str(error)) + 1)
            writer.close()
            return body

    assert run(main()).decode() == f"{error}\n"


def test_a_mitmproxy_that_answers_in_another_way_answers_502(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "http_layers", SimpleNamespace())

    async def main() -> str:
        async with proxy(FakeBroker({"a.testdom": DialTimeout("too slow")})) as p:
            return (await curl("--include", "--proxy", p.url, "http://a.testdom/")).output

    answer = run(main())
    assert answer.startswith("HTTP/1.1 502 ")
    assert "too slow" in answer


def test_an_http2_client_is_served_again_when_the_agent_is_back() -> None:
    async def main() -> None:
        async with service(answering(b"back")) as port:
            broker = FakeBroker({"a.testdom": AgentGone("gone")})

            class Script:
                """The agent comes back between the two requests."""

                def error(self, _: http.HTTPFlow) -> None:
                    broker.services["a.testdom"] = port

                def request(self, flow: http.HTTPFlow) -> None:
                    flow.request.scheme = "http"

            async with proxy(broker, Script(), connection_strategy="lazy") as p:
                finished = await curl(
                    *("--proxy", p.url, "--http2", "--write-out", "%{http_code} "),
                    *("--cacert", str(confdir() / "mitmproxy-ca-cert.pem")),
                    *("https://a.testdom/1", "https://a.testdom/2"),
                    *("--output", "/dev/null", "--output", "/dev/null"),
                )
                assert finished.output == "502 200 "

    run(main())


def test_client_replay_goes_through_the_dial() -> None:
    async def main() -> None:
        async with service(answering(b"replayed")) as port:
            broker = FakeBroker({"a.testdom": port})
            done: asyncio.Queue[http.HTTPFlow] = asyncio.Queue()

            class Script:
                def response(self, flow: http.HTTPFlow) -> None:
                    done.put_nowait(flow)

                def error(self, flow: http.HTTPFlow) -> None:
                    done.put_nowait(flow)

            async with proxy(broker, Script()) as p:
                for host in ("a.testdom", "b.testdom"):
                    flow = tflow.tflow(req=http.Request.make("GET", f"http://{host}/x"), live=False)
                    p.master.commands.call("replay.client", [flow])
                good, bad = await done.get(), await done.get()
                assert good.response is not None
                assert good.response.content == b"replayed"
                assert bad.error is not None
                assert bad.error.msg.startswith("nobody is registered as b.testdom")
                assert [dial[:2] for dial in broker.dials] == [("a.testdom", 80), ("b.testdom", 80)]
                assert broker.dials[0][2].request is not None
                assert broker.dials[0][2].request.path == "/x"

    run(main())


def test_a_large_request_that_is_answered_already_is_let_pass_unread() -> None:
    class Refuses:
        def requestheaders(self, flow: http.HTTPFlow) -> None:
            flow.response = http.Response.make(403, b"no")

    async def main() -> None:
        async with proxy(FakeBroker(), Refuses(), stream_large_bodies="1k") as p:
            for how in ("Content-Length: 300000", "Transfer-Encoding: chunked"):
                finished = await curl(
                    *("--proxy", p.url, "--write-out", " %{http_code}", "--header", how),
                    *("--data-binary", "@-", "http://a.testdom/upload"),
                    feed=b"x" * 300_000,
                )
                assert finished.output == "no 403"

    run(main())
