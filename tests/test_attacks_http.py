"""What a client may try at the proxy's port: to be two requests, another name, or another user."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import pytest

from agent_views import view
from mitm import FakeBroker, Proxy, curl, proxy, service
from tunnel import run

POST = b"POST http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n"
GET = b"GET http://a.testdom/ HTTP/1.1\r\n"
ANSWERED = re.compile(rb"HTTP/1.1 (200 OK|400 ).*\r\n\r\n", re.DOTALL)
PATIENCE = 10.0
SECOND = b"GET /second HTTP/1.1\r\nHost: b.other\r\n\r\n"


class Services:
    """a.testdom and b.other, which keep what comes to them."""

    def __init__(self, broker: FakeBroker, proxy: Proxy) -> None:
        self.broker = broker
        self.proxy = proxy
        self.heard: dict[str, list[bytearray]] = {"a.testdom": [], "b.other": []}

    async def send(self, request: bytes) -> bytes:
        """All that is answered, up to a service's answer, a refusal or the connection's end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        try:
            writer.write(request)
            answer = b""
            async with asyncio.timeout(PATIENCE):
                while not ANSWERED.search(answer) and (data := await reader.read(65536)):
                    answer += data
            return answer
        finally:
            writer.close()

    def requests(self, name: str) -> list[h11.Request]:
        """What a strict reader makes of what came: no more, and nothing besides."""
        found = []
        for octets in filter(None, self.heard[name]):  # to h11 nothing is an end
            reader = h11.Connection(h11.SERVER)
            reader.receive_data(bytes(octets))
            while (event := reader.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Request):
                    found.append(event)
                elif isinstance(event, h11.EndOfMessage):
                    reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    reader.send(h11.EndOfMessage())
                    reader.start_next_cycle()
        return found


@asynccontextmanager
async def services(**options: object) -> AsyncIterator[Services]:
    found: Services | None = None

    def keeping(name: str) -> object:
        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert found is not None
            heard = bytearray()
            found.heard[name].append(heard)
            while data := await reader.read(65536):
                heard += data
                if b"\r\n\r\n" in data:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        return listen

    async with (
        service(keeping("a.testdom")) as a,  # type: ignore[arg-type]
        service(keeping("b.other")) as b,  # type: ignore[arg-type]
    ):
        broker = FakeBroker({"a.testdom": a, "b.other": b})
        async with proxy(broker, **options) as running:
            found = Services(broker, running)
            yield found


# Two requests in one


@pytest.mark.parametrize("stream", [{}, {"stream_large_bodies": "1"}], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        POST + b"Content-Length: 0\r\nContent-Length: 41\r\n\r\n" + SECOND,
        POST + b"Content-Length: 0, 41\r\n\r\n" + SECOND,
        POST + b"Content-Length: +5\r\n\r\nhello",
        POST + b"Content-Length: 1_0\r\n\r\nhelloworld",
        POST + b"Content-Length: -1\r\n\r\n" + SECOND,
        POST + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SECOND,
        POST + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SECOND,
        POST + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SECOND,
        POST + b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SECOND,
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + SECOND,
        POST + b"Transfer-Encoding: chunked\r\n\r\n5;a=\nb\r\nhello\r\n0\r\n\r\n" + SECOND,
        GET + b"Host: a.testdom\r\nX: a\r\n Content-Length: 41\r\n\r\n" + SECOND,
        GET + b"Host: a.testdom\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n" + SECOND,
        GET + b"Host: a.testdom\r\nX: y\0z\r\n\r\n",
        GET + b"Host: a.testdom\r\n b.other\r\n\r\n",
        GET + b"Host: a.testdom\r\nHost: b.other\r\n\r\n",
        GET + b"Host: a.testdom\r\nHost: a.testdom\r\n\r\n",
        GET + b"Host: a.testdom\r\nHost: shop.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.testdom\r\nHost: b.other\r\n\r\n",
        GET + b"Host: b.other\r\n HTTP/1.1\r\nHost: a.testdom\r\n\r\n",
        b"GET http://b.other@a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n",
        b"GET http://b.other\\@a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n",
    ],
    ids=lambda value: repr(value[-60:]),
)
def test_a_request_that_can_be_read_in_two_ways_reaches_nobody(
    request_: bytes, stream: dict[str, str]
) -> None:
    async def main() -> None:
        async with services(**stream) as found:
            answer = await found.send(request_)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
            assert found.requests("a.testdom") == found.requests("b.other") == []
            # And it is over with that client's connection, which nobody else's shares.
            answer = await found.send(GET + b"Host: a.testdom\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert len(found.requests("a.testdom")) == 1

    run(main())


def test_what_looks_like_a_second_request_in_a_body_is_one_requests_body() -> None:
    async def main() -> None:
        async with services() as found:
            length = f"Content-Length: {len(SECOND)}\r\n\r\n".encode()
            await found.send(POST + length + SECOND)
            await found.send(GET + b"Host: a.testdom\r\n" + length + SECOND)
            assert [each.target for each in found.requests("a.testdom")] == [b"/", b"/"]
            assert found.requests("b.other") == []

    run(main())


def test_what_one_client_leaves_open_is_never_another_clients() -> None:
    """A connection to a service serves the requests of one client's connection alone."""

    async def main() -> None:
        async with services() as found:
            _, attacker = await asyncio.open_connection("127.0.0.1", found.proxy.port)
            attacker.write(POST + b"Content-Length: 1000\r\n\r\nGET /stolen HTTP/1.1\r\nX: ")
            answer = await found.send(GET + b"Host: a.testdom\r\nCookie: secret\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            attacker.close()
            [heard] = [octets for octets in found.heard["a.testdom"] if b"secret" in octets]
            assert b"stolen" not in heard

    run(main())


# Another name


@pytest.mark.parametrize(
    "host",
    ["b.other", "b.other:80", "B.OTHER.", "b.other:99999", "x@b.other", "whip.internal"],
)
@pytest.mark.parametrize("way", ["plain", "tunnel", "url in a tunnel"])
def test_a_request_for_one_name_cannot_carry_another(way: str, host: str) -> None:
    inside = {
        "plain": f"GET http://a.testdom/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "tunnel": f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "url in a tunnel": f"GET http://{host}/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n",
    }[way].encode()
    connect = b"" if way == "plain" else b"CONNECT a.testdom:80 HTTP/1.1\r\nHost: a.testdom\r\n\r\n"

    async def main() -> None:
        async with services() as found:
            answer = await found.send(connect + inside)
            assert b"HTTP/1.1 400 " in answer
            assert found.requests("a.testdom") == found.requests("b.other") == []
            assert {host for host, _, _ in found.broker.dials} <= {"a.testdom"}

    run(main())


@pytest.mark.parametrize(
    "host", ["a.testdom", "A.testdom.:80", "shop.example", "testdom", "x.y.testdom", ""]
)
def test_a_host_header_that_is_no_other_service_of_whips_is_passed_on(host: str) -> None:
    async def main() -> None:
        async with services() as found:
            found.broker.known = frozenset({"testdom", "x.y.testdom"})
            found.broker.agents.append(view("a"))
            answer = await found.send(GET + f"Host: {host}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert found.heard["a.testdom"][0].startswith(
                f"GET / HTTP/1.1\r\nHost: {host}\r\n".encode()
            )

    run(main())


def test_a_tunnel_leads_to_its_own_name_whatever_is_asked_inside() -> None:
    async def main() -> None:
        async with services() as found:
            connect = b"CONNECT %b:80 HTTP/1.1\r\nHost: b.other:80\r\n\r\n"
            await found.send(connect % b"a.testdom" + connect % b"b.other" + SECOND)
            assert [host for host, _, _ in found.broker.dials] == ["a.testdom"]
            assert found.heard["b.other"] == []

    run(main())


def test_who_wants_broken_requests_to_pass_can_have_them() -> None:
    async def main() -> None:
        async with services(validate_inbound_headers=False) as found:
            answer = await found.send(GET + b"Host: b.other\r\nX: a\r\n b\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert [host for host, _, _ in found.broker.dials] == ["a.testdom"]

    run(main())


# Another user


def _login(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:secret".encode()).decode()


CLAIMS = (
    *("--header", "X-Forwarded-For: 192.0.2.1", "--header", "X-Forwarded-Host: b.other"),
    *("--header", "X-Forwarded-User: root", "--header", "X-Forwarded-Port: 81"),
    *("--header", 'Forwarded: for=192.0.2.1;host="b.other"', "--header", "X-Real-IP: 192.0.2.1"),
    *("--header", "X-Original-URL: http://b.other/", "--header", "Remote-User: root"),
)


def test_headers_that_claim_to_be_somebody_change_nothing_for_whip() -> None:
    async def main() -> None:
        async with services() as found:
            through = ("--proxy", found.proxy.url, *CLAIMS)
            claim = ("--header", f"Proxy-Authorization: {_login('root')}")
            await curl(*through, *claim, "http://a.testdom/")
            await curl(*through, *claim, "--proxytunnel", "http://a.testdom/")
            assert [(host, port) for host, port, _ in found.broker.dials] == [("a.testdom", 80)] * 2
            for _, _, caller in found.broker.dials:
                assert caller.address is not None
                assert caller.address[0] == "127.0.0.1"
                assert caller.proxy_user is None
                assert caller.certificate_names == ()

    run(main())


def test_a_login_inside_of_a_tunnel_makes_nobody_another_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WHIP_PROXY_PASSWORD", "secret")

    async def main() -> None:
        async with services(whip_proxy_auth_username="alice") as found:
            url = found.proxy.url.replace("//", "//alice:secret@")
            claim = ("--header", f"Proxy-Authorization: {_login('root')}", *CLAIMS)
            tunnel = ("--proxytunnel", "--proxy-header", "X-Forwarded-User: root")
            await curl("--proxy", url, *tunnel, *claim, "http://a.testdom/")
            assert [caller.proxy_user for _, _, caller in found.broker.dials] == ["alice"]
            wrong = found.proxy.url.replace("//", "//root:secret@")
            for tunnelled in ((), tunnel):
                await curl("--proxy", wrong, *tunnelled, "http://a.testdom/")
                await curl("--proxy", found.proxy.url, *tunnelled, "http://a.testdom/")
            assert len(found.broker.dials) == 1

    run(main())
