"""Where a connection may go, and that nothing of whip's goes anywhere else."""

from __future__ import annotations

import asyncio

import pytest
from mitmproxy.proxy import server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.test import tflow

from mitm import FakeBroker, answering, curl, proxy, service
from tunnel import run
from whip_addon.guard import Guard
from whip_addon.routing import Route, route
from whip_core.errors import AgentGone

OURS = {"instance1.testdom", "testdom"}


def ours(host: str) -> bool:
    return host.lower().removesuffix(".") in OURS


@pytest.mark.parametrize(
    ("host", "without_fallback", "with_fallback"),
    [
        ("instance1.testdom", Route.WHIP, Route.WHIP),
        ("Instance1.TESTDOM.", Route.WHIP, Route.WHIP),
        ("testdom", Route.WHIP, Route.WHIP),
        ("example.com", Route.ASK, Route.DIRECT),
        ("instance1", Route.ASK, Route.DIRECT),
        ("localhost", Route.ASK, Route.DIRECT),
        ("proxy.example", Route.DIRECT, Route.DIRECT),
        ("192.0.2.1", Route.REFUSE, Route.DIRECT),
        ("2001:db8::1", Route.REFUSE, Route.DIRECT),
        ("[2001:db8::1]", Route.REFUSE, Route.DIRECT),
        ("fe80::1%eth0", Route.REFUSE, Route.DIRECT),
        ("[fe80::1%eth0]", Route.REFUSE, Route.DIRECT),
        ("1.2.3.4.5", Route.ASK, Route.DIRECT),
        ("", Route.ASK, Route.DIRECT),
    ],
)
def test_where_a_host_goes(host: str, without_fallback: Route, with_fallback: Route) -> None:
    upstreams = {("proxy.example", 3128)}
    for fallback, expected in ((False, without_fallback), (True, with_fallback)):
        assert route(host, 3128, ours=ours, fallback=fallback, upstreams=upstreams) is expected


def test_with_fallback_a_name_that_a_plugin_resolves_is_whips_and_no_address_or_upstream_is() -> (
    None
):
    asked: list[tuple[str, int]] = []

    def resolved(host: str, port: int) -> bool:
        asked.append((host, port))
        return host == "shop"

    for host, fallback, expected in (
        ("shop", True, Route.WHIP),
        ("example.com", True, Route.DIRECT),
        ("192.0.2.1", True, Route.DIRECT),
        ("proxy.example", True, Route.DIRECT),
        ("shop", False, Route.ASK),
    ):
        upstreams = {("proxy.example", 3128)}
        assert (
            route(host, 3128, ours=ours, fallback=fallback, upstreams=upstreams, resolved=resolved)
            is expected
        )
    assert asked == [("shop", 3128), ("example.com", 3128)]


def test_only_the_very_upstream_proxy_is_let_out() -> None:
    upstreams = {("proxy.example", 3128), ("testdom", 3128)}
    for host, port, expected in (
        ("proxy.example", 80, Route.ASK),
        ("other.example", 3128, Route.ASK),
        ("testdom", 3128, Route.WHIP),
    ):
        assert route(host, port, ours=ours, fallback=False, upstreams=upstreams) is expected


def test_an_address_is_never_taken_for_a_name() -> None:
    assert route("192.0.2.1", 80, ours=lambda _: True, fallback=False) is Route.REFUSE


def test_a_name_of_whips_does_not_go_out_when_its_dial_fails() -> None:
    async def main() -> None:
        broker = FakeBroker({"localhost": AgentGone("the agent of localhost left")})
        async with (
            service(answering(b"public")) as port,
            proxy(broker, whip_fallback=True) as p,
        ):
            finished = await curl("--proxy", p.url, f"http://LocalHost.:{port}/")
            assert "the agent of localhost left" in finished.output
            broker.services.clear()
            finished = await curl("--proxy", p.url, f"http://localhost:{port}/")
            assert finished.output == "public"

    run(main())


def test_a_name_that_nobody_has_is_left_to_the_broker_and_its_patience() -> None:
    async def main() -> None:
        async with service(answering(b"here now")) as port:
            broker = FakeBroker()
            broker.routes = lambda host: False  # type: ignore[method-assign]
            async with proxy(broker, whip_wait="2.5") as p:
                finished = await curl("--proxy", p.url, "http://a.testdom/")
                assert "nobody is registered as a.testdom; to let other" in finished.output
                broker.services["a.testdom"] = port
                finished = await curl("--proxy", p.url, "http://a.testdom/")
                assert finished.output == "here now"
                assert broker.waits == [2.5, 2.5]

    run(main())


def test_mitmproxys_own_host_is_served_without_any_connection() -> None:
    async def main() -> None:
        async with proxy(broker := FakeBroker()) as p:
            finished = await curl("--proxy", p.url, "http://mitm.it/")
            assert "mitmproxy" in finished.output
            assert broker.dials == []

    run(main())


def test_an_upstream_proxy_is_reached_but_never_told_whips_names() -> None:
    async def main() -> None:
        async with service(answering(b"by upstream")) as port:
            broker = FakeBroker(known=frozenset({"a.testdom"}))
            async with proxy(broker, mode=[f"upstream:http://127.0.0.1:{port}"]) as p:
                finished = await curl("--proxy", p.url, "http://public.example/")
                assert finished.output == "by upstream"
                for url in ("http://a.testdom/", "https://a.testdom/"):
                    finished = await curl("--verbose", "--proxy", p.url, url)
                    assert " 502 " in finished.errors
                assert broker.dials == []

    run(main())


@pytest.mark.parametrize("fallback", [False, True])
def test_a_connection_that_did_not_come_from_the_dial_is_killed(
    monkeypatch: pytest.MonkeyPatch, fallback: bool
) -> None:
    async def main() -> None:
        received: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.append(await reader.read())

        async with service(listen) as port:
            broker = FakeBroker(known=frozenset({"localhost"}))
            async with proxy(broker, whip_fallback=fallback) as p:
                # As a mitmproxy would that connects in another way than the seam knows.
                with monkeypatch.context() as patch:
                    patch.setitem(vars(server), "asyncio", asyncio)
                    for _ in range(2):
                        finished = await curl(
                            "--proxy", p.url, "--include", f"http://localhost:{port}/secret"
                        )
                        assert finished.output.startswith("HTTP/1.1 502 ")
        assert b"".join(received) == b""

    run(main(), logs_errors=True)  # so that an operator hears of it


def _guard(way: Route) -> Guard:
    return Guard(lambda: None, lambda host, port: way, lambda server: False)


def test_a_replay_past_the_dial_is_ended() -> None:
    async def main() -> None:
        data = ServerConnectionHookData(client=tflow.tclient_conn(), server=tflow.tserver_conn())
        async with proxy(FakeBroker()):
            with pytest.raises(asyncio.CancelledError, match="without whip"):
                _guard(Route.WHIP).server_connected(data)
            _guard(Route.DIRECT).server_connected(data)

    run(main(), logs_errors=True)  # so that an operator hears of it


@pytest.mark.parametrize(
    ("way", "error"),
    [
        (Route.WHIP, "whip carries TCP only"),
        (Route.ASK, "--fallback"),
        (Route.REFUSE, "--fallback"),
        (Route.DIRECT, None),
    ],
)
def test_udp_follows_the_same_rules(way: Route, error: str | None) -> None:
    data = ServerConnectionHookData(client=tflow.tclient_conn(), server=tflow.tserver_conn())
    data.server.transport_protocol = "udp"
    _guard(way).server_connect(data)
    assert (data.server.error is None) == (error is None)
    assert (error or "") in (data.server.error or "")
