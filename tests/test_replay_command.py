"""`whip replay-across`, as a process, through a proxy that runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click
import pytest
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow

from fleet import Fleet, fleet
from mitm import answering, curl, proxy, read_head, service
from processes import Process, free_ports, started
from programs import needs_program
from tunnel import Handler, authority, run
from whip_addon.replay_command import Proxy
from whip_addon.vouching import ANSWER
from whip_core.monitor import serving
from whip_core.status import Status

ONE, TWO, THREE = (f"instance{number}.testdom" for number in (1, 2, 3))

pytestmark = needs_program("whip", "curl")


def save(path: Path, *flows: object) -> Path:
    with path.open("wb") as file:
        writer = FlowWriter(file)
        for flow in flows:
            assert isinstance(flow, HTTPFlow)
            writer.add(flow)
    return path


@asynccontextmanager
async def replayed(it: Fleet | None, *arguments: str | Path) -> AsyncIterator[tuple[int, Process]]:
    address = [f"--proxy=127.0.0.1:{it.proxy.port}"] if it is not None else []
    async with started("whip", "replay-across", *address, *arguments) as process:
        yield await process.ended(), process


def posting(answers: dict[str, bytes], seen: list[bytes]) -> dict[str, Handler]:
    def handler(answer: bytes) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await read_head(reader)
            seen.append(head + await reader.readexactly(3))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)

        return handle

    return {name: handler(answer) for name, answer in answers.items()}


def test_one_of_three_that_answers_differently_is_found_and_is_the_exit_status(
    tmp_path: Path,
) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        same = b'{"a": 1, "b": 2}'
        services = posting({ONE: same, TWO: b'{"b": 2, "a": 1}', THREE: b'{"a": 1, "b": 3}'}, seen)
        async with fleet(services) as it:
            await curl(
                *("--proxy", it.proxy.url, "--data", "x=1", "--header", "X-Mine: yes"),
                f"http://{ONE}/path?query",
            )
            file = save(tmp_path / "flows", *it.flows)
            async with replayed(it, file, "testdom") as (status, process):
                assert status == 1
                assert [" ".join(line.split()) for line in process.lines[:6]] == [
                    "POST /path?query across testdom",
                    "instance status octets answer",
                    f"{ONE} 200 16 same",
                    f"{TWO} 200 16 same",
                    f"{THREE} 200 16 differs",
                    "body:",
                ]
                assert [line.strip() for line in process.lines if line.strip()[0] in "+-"][2:] == [
                    '-  "b": 2',
                    '+  "b": 3',
                ]

    run(main())
    assert len(seen) == 4
    for request in seen:
        assert request.startswith(b"POST /path?query HTTP/1.1\r\nHost: instance1.testdom\r\n")
        assert b"X-Mine: yes\r\n" in request
        assert request.endswith(b"\r\n\r\nx=1")


def test_equal_answers_are_a_success_and_headers_can_be_left_out(tmp_path: Path) -> None:
    async def main() -> None:
        services = {
            ONE: answering(b"same", "X-Host: one", "Date: now"),
            TWO: answering(b"same", "X-Host: two", "Date: then"),
        }
        async with fleet(services) as it:
            await curl("--proxy", it.proxy.url, f"http://{ONE}/")
            file = save(tmp_path / "flows", *it.flows)
            async with replayed(it, file, "testdom") as (status, process):
                assert (status, "header x-host: two" in str(process)) == (1, True)
            async with replayed(it, "--ignore-header=X-Host", file, "testdom") as (status, _):
                assert status == 0

    run(main())


def test_https_goes_through_the_same_proxy(tmp_path: Path) -> None:
    files = authority().server_files([ONE])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    async def main() -> None:
        async with (
            service(answering(b"secret"), ssl=context) as port,
            fleet({ONE: port}, ssl_insecure=True) as it,
        ):
            flow = tflow.tflow(resp=True)
            flow.request.url = f"https://{ONE}:{port}/x"
            flow.request.content = b""
            async with replayed(it, save(tmp_path / "flows", flow), "testdom") as (status, process):
                assert (status, "200" in process.lines[2]) == (0, True), str(process)

    run(main())


@pytest.mark.parametrize(
    ("content", "domain", "expected", "says"),
    [
        (b"no flows", "testdom", 1, "cannot read flows from"),
        (b"", "testdom", 1, "has no HTTP request that can be replayed"),
        (None, "testdon", 1, "there is no domain testdon; close to it: testdom"),
        (None, "a b", 2, "is not a host name"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    tmp_path: Path, content: bytes | None, domain: str, expected: int, says: str
) -> None:
    async def main() -> None:
        file = save(tmp_path / "flows", tflow.tflow(resp=True))
        if content is not None:
            file.write_bytes(content)
        async with (
            fleet({ONE: answering(b"ok")}) as it,
            replayed(it, file, domain) as (status, process),
        ):
            assert (status, says in process.lines[-1]) == (expected, True), str(process)
            assert len(process.lines) == 1

    run(main())


def test_what_whip_answers_itself_is_no_answer_of_an_instance(tmp_path: Path) -> None:
    """Also if the service sends the mark that whip's proxy puts on what is the instance's."""

    async def main() -> None:
        [nobody] = free_ports(1)
        forged = answering(b"same", f"{ANSWER}: 0 {THREE}")
        async with fleet({ONE: nobody, TWO: nobody, THREE: forged}) as it:
            flow = tflow.tflow(resp=True)
            flow.request.url = f"http://{THREE}/"
            page = tflow.tflow(resp=True)
            page.request.url = "http://whip.internal/api/agents"
            file = save(tmp_path / "flows", page, flow)
            async with replayed(it, file, "testdom") as (status, process):
                lines = [" ".join(line.split()) for line in process.lines]
                assert (status, len(lines)) == (1, 6), str(process)
                assert lines[0] == (
                    "left out http://whip.internal/api/agents: it went to whip's own status page"
                )
                for line, name in zip(lines[3:5], (ONE, TWO), strict=True):
                    assert line.startswith(
                        f"{name} - - not reached: 502, {name}:80: the agent cannot"
                    )
                assert lines[5] == f"{THREE} 200 4 same"

    run(main())


def test_the_metrics_port_is_no_proxy(tmp_path: Path) -> None:
    file = save(tmp_path / "flows", tflow.tflow(resp=True))

    async def main() -> None:
        async with fleet({ONE: answering(b"ok")}) as it:
            routes = Status(it.broker).routes()
            async with (
                serving("127.0.0.1:0", routes, chosen=True) as address,
                replayed(None, f"--proxy={address}", file, "testdom") as (status, process),
            ):
                assert (status, len(process.lines)) == (1, 1), str(process)
                assert "is not a `whip proxy`" in process.lines[0]

    run(main())


def test_without_a_proxy_or_with_another_one_it_says_so(tmp_path: Path) -> None:
    file = save(tmp_path / "flows", tflow.tflow(resp=True), tflow.twebsocketflow())

    async def main() -> None:
        [port] = free_ports(1)
        async with replayed(None, f"--proxy=127.0.0.1:{port}", file, "d") as (status, process):
            assert (status, "cannot reach a proxy" in process.lines[-1]) == (1, True)
            assert "it is a WebSocket" in process.lines[0]

        class Answers:
            def request(self, flow: HTTPFlow) -> None:
                flow.response = Response.make(200, b"{}")

        async with proxy(None, Answers()) as p:
            arguments = (f"--proxy=http://me:secret@127.0.0.1:{p.port}", file, "d")
            async with replayed(None, *arguments) as (status, process):
                assert (status, "is not a `whip proxy`" in process.lines[-1]) == (1, True)

    run(main())


def test_where_the_proxy_is_can_be_written_in_several_ways() -> None:
    assert Proxy.parse("localhost") == Proxy("localhost", 8080)
    assert Proxy.parse("https://me:a%20b@proxy.example:1") == Proxy(
        "proxy.example", 1, True, "Basic bWU6YSBi"
    )
    for wrong in ("localhost:x", "ftp://localhost", "http://", "localhost:8080/p", "\udcff:1"):
        with pytest.raises(click.BadParameter):
            Proxy.parse(wrong)
