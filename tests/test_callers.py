"""Who a dial is made for."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from mitm import FakeBroker, answering, curl, proxy, read_head, service
from tunnel import run
from whip_addon.callers import Callers
from whip_core.caller import NOBODY, Caller
from whip_core.testing import Authority


def test_a_request_brings_its_client_and_what_it_asks_for() -> None:
    async def main() -> Caller:
        async with service(answering(b"ok")) as port:
            broker = FakeBroker({"a.testdom": port})
            async with proxy(broker, whip_downstream_request_id_header="X-Request-ID") as p:
                await curl(
                    *("--proxy", p.url, "--header", "X-Request-ID: r-1", "--request", "PUT"),
                    *("--data", "x", "http://a.testdom/path?query=1"),
                )
            [(_, _, caller)] = broker.dials
            return caller

    caller = run(main())
    assert caller.address is not None
    assert caller.address[0] == "127.0.0.1"
    assert caller.request_id == "r-1"
    request = caller.request
    assert request is not None
    assert (request.method, request.scheme, request.host) == ("PUT", "http", "a.testdom")
    assert request.path == "/path?query=1"
    assert request.headers["x-request-id"] == "r-1"


def test_each_request_of_a_connection_brings_its_own() -> None:
    """Also where the request is streamed, and so dialled before it is complete."""

    async def main() -> list[tuple[str, str | None]]:
        async with service(answering(b"ok")) as port:
            names = ["a.testdom", "b.testdom", "c.testdom"]
            broker = FakeBroker(dict.fromkeys(names, port))
            options = {
                "whip_downstream_request_id_header": "x-id",
                "stream_large_bodies": "1",
            }
            async with proxy(broker, **options) as p:
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                for name in names:
                    length = 5 if name == "b.testdom" else 0
                    writer.write(
                        f"POST http://{name}/ HTTP/1.1\r\nHost: {name}\r\nX-Id: {name[0]}\r\n"
                        f"Content-Length: {length}\r\n\r\n".encode()
                    )
                    writer.write(b"x" * length)
                    await read_head(reader)
                    assert await reader.readexactly(2) == b"ok"
                writer.close()
            return [(host, caller.request_id) for host, _, caller in broker.dials]

    assert run(main()) == [("a.testdom", "a"), ("b.testdom", "b"), ("c.testdom", "c")]


def test_cookies_that_come_apart_are_one_header() -> None:
    async def main() -> Caller:
        async with service(answering(b"ok")) as port:
            broker = FakeBroker({"a.testdom": port})
            async with proxy(broker) as p:
                await curl(
                    *("--proxy", p.url, "http://a.testdom/"),
                    *("--header", "Cookie: a=1, 2", "--header", "cookie: b=3"),
                )
            [(_, _, caller)] = broker.dials
            return caller

    caller = run(main())
    assert caller.request is not None
    assert caller.request.headers["cookie"] == "a=1, 2; b=3"


def _login(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize("mode", ["regular", "socks5"])
def test_the_proxys_user_is_known(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHIP_PROXY_PASSWORD", "secret")

    async def main() -> None:
        async with service(answering(b"ok")) as port:
            broker = FakeBroker({"a.testdom": port})
            async with proxy(broker, mode=[mode], whip_proxy_auth_username="engineer") as p:
                scheme = "http" if mode == "regular" else "socks5h"
                url = f"{scheme}://engineer:secret@127.0.0.1:{p.port}"
                finished = await curl("--proxy", url, "http://a.testdom/")
                assert finished.output == "ok"
                finished = await curl("--proxy", url, "--proxytunnel", "http://a.testdom/")
                assert finished.output == "ok"
            assert [caller.proxy_user for _, _, caller in broker.dials] == ["engineer"] * 2
            # The password is mitmproxy's business alone.
            assert "secret" not in repr(broker.dials)
            assert _login("engineer", "secret") not in repr(broker.dials)

    run(main())


@pytest.mark.parametrize("url", ["http://a.testdom/", "https://a.testdom/"])
def test_names_of_a_verified_client_certificate_are_known(url: str, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    server, client = authority.server_files(), authority.client_files("alice.users")

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async def main() -> None:
        async with service(hangs_up) as port:
            broker = FakeBroker({"a.testdom": port})
            async with proxy(
                broker,
                request_client_cert=True,
                whip_tls=True,
                whip_tls_key_path=str(server.key),
                whip_tls_cert_path=str(server.cert),
                whip_tls_ca_cert_path=str(server.ca),
                whip_proxy_tls=True,
                whip_proxy_tls_key_path=str(server.key),
                whip_proxy_tls_cert_path=str(server.cert),
            ) as p:
                base = (
                    *("--proxy", f"https://localhost:{p.port}", url),
                    *("--proxy-cacert", str(server.ca), "--insecure"),
                )
                shown = ("--proxy-cert", str(client.cert), "--proxy-key", str(client.key))
                await curl(*base, *shown)
                await curl(*base)
                other = stranger.client_files("alice.users")
                strangers = ("--proxy-cert", str(other.cert), "--proxy-key", str(other.key))
                refused = await curl(*base, *strangers)
                assert refused.status != 0
                assert len(broker.dials) == 2
                server.ca.write_bytes(server.ca.read_bytes() + other.ca.read_bytes())
                await curl(*base, *strangers)
            names = [caller.certificate_names for _, _, caller in broker.dials]
            assert names == [("alice.users",), (), ("alice.users",)]

    run(main())


def test_outside_of_mitmproxy_nobody_asks() -> None:
    assert Callers(lambda: "x-id").current() == NOBODY
