"""Picking by the HTTP request: header, cookie, user; on one connection of one client too."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from mitmproxy.proxy.layers.http import GetHttpConnection

from http_tunnel import asking, tunnel
from mitm import answering, answering_http2, read_head, service, web_context
from tunnel import run
from whip_addon.reuse import MAX_CONNECTIONS
from whip_core import Caller, hookimpl
from whip_core.agents import AgentView
from whip_core.names import Target

MANY = 7
"""More instances than mitmproxy has connections to one address for one client."""


class Canary:
    """Requests that ask for it go to the canaries, and no others."""

    @hookimpl
    def whip_pick(self, candidates: Sequence[AgentView], caller: Caller) -> AgentView | None:
        wanted = str(caller.request is not None and caller.request.headers.get("x-canary") == "1")
        return next(
            (agent for agent in candidates if agent.labels.get("canary", "False") == wanted), None
        )


NAMES = ("*.testdom", "testdom")
URLS = ["http://testdom/", "https://testdom/"]


def over(url: str) -> dict[str, Any]:
    """How the services and the proxy have to be started for a URL."""
    if url.startswith("http:"):
        return {}
    context = web_context(*NAMES)
    return {
        "serve": lambda name: service(answering(name.encode() + b"\n"), ssl=context),
        "ssl_insecure": True,
    }


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("strategy", ["eager", "lazy"])
@pytest.mark.parametrize("url", URLS)
def test_requests_on_one_connection_go_each_to_its_own_instance(
    url: str, strategy: str, version: str
) -> None:
    async def main() -> None:
        async with tunnel(
            *("stable", "canary"),
            plugins=[Canary()],
            labels={"canary": {"canary": "True"}},
            connection_strategy=strategy,
            **over(url),
        ) as t:
            canary, plain = ["x-canary: 1"], ["x-canary: 0"]
            t.for_each = (version,)
            finished = await t.curl(*asking(url, plain, canary, canary, plain, canary))
            assert finished.output.split() == ["stable", "canary", "canary", "stable", "canary"]
            if version == "--http1.1" or url.startswith("http:"):
                assert Counter(t.dialled) == {"stable": 1, "canary": 1}

    run(main())


@pytest.mark.parametrize(
    ("picker", "header"),
    [("sticky:header=x-user", "x-user: {}"), ("sticky:cookie=user", "cookie: a=b; user={}; c=d")],
)
def test_sticky_by_header_or_cookie_keeps_a_user_at_an_instance(picker: str, header: str) -> None:
    async def main() -> None:
        async with tunnel("a", "b", "c", whip_picker=f"testdom={picker}") as t:
            users = [[header.format(number % 10)] for number in range(30)]
            finished = await t.curl(*asking("http://testdom/", *users))
            served = finished.output.split()
            assert served[:10] == served[10:20] == served[20:]
            assert set(served) == {"a", "b", "c"}
            assert sorted(t.dialled) == ["a", "b", "c"], "connections are kept and used again"

    run(main())


def test_where_picking_does_not_go_by_the_caller_connections_are_kept_as_ever() -> None:
    async def main() -> None:
        for picker in ("random", "round-robin", "two-choices", "otherdom=sticky"):
            async with tunnel("a", "b", whip_picker=picker) as t:
                finished = await t.curl(*asking("http://testdom/", *[["x: y"]] * 5))
                assert len(set(finished.output.split())) == 1
                assert len(t.dialled) == 1

    run(main())


@pytest.mark.parametrize("picker", ["random", "sticky"])
def test_a_name_given_to_another_instance_goes_there_also_where_a_connection_is_open(
    picker: str,
) -> None:
    async def main() -> None:
        async with tunnel("a", "b", whip_picker=picker) as t:
            reader, writer = await asyncio.open_connection("127.0.0.1", t.proxy.port)

            async def get() -> str:
                writer.write(b"GET http://testdom/ HTTP/1.1\r\nHost: testdom\r\n\r\n")
                await read_head(reader)
                return (await reader.readline()).decode().strip()

            def pick(*instance: str) -> None:
                t.proxy.master.commands.call_strings("whip.pick", ["testdom", *instance])

            usual = await get()
            other = "b" if usual == "a" else "a"
            pick(f"{other}.testdom")
            assert [await get(), await get()] == [other, other]
            pick(f"{usual}.testdom")
            assert [await get(), await get()] == [usual, usual]
            pick()
            assert await get() == usual, "the connection of the beginning"
            assert t.dialled == [usual, other, usual], "connections are used again where they fit"
            writer.close()

    run(main())


def test_more_instances_than_mitmproxy_connects_to_at_once_are_no_dead_end() -> None:
    """It has five connections to an address, and waits: the idle ones make room."""
    names = [f"a{number}" for number in range(MANY)]

    class ByName:
        @hookimpl
        def whip_pick(self, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
            assert caller.request is not None
            wanted = caller.request.headers["x-name"]
            return next(agent for agent in candidates if agent.name.hostname == wanted)

    async def main() -> None:
        async with tunnel(*names, plugins=[ByName()]) as t:
            asked = names * 3
            finished = await t.curl(
                *asking("http://testdom/", *[[f"x-name: {name}"] for name in asked])
            )
            assert finished.output.split() == asked
            opened = [dial.dial_id for dial in t.watch.opened]
            assert len(opened) > MANY, "some had made room, and were dialled again"

    run(main())


def test_over_http2_at_the_same_time_each_request_finds_its_instance() -> None:
    async def main() -> None:
        asked = asyncio.Semaphore(0)
        may_answer = asyncio.Event()
        context = web_context(*NAMES, alpn="h2")

        def serve(name: str) -> Any:
            async def parts(_: str) -> AsyncIterator[bytes]:
                asked.release()
                await may_answer.wait()
                yield f"{name}\n".encode()

            return service(answering_http2(parts), ssl=context)

        names = ["a", "b", "c"]
        async with tunnel(
            *names, serve=serve, ssl_insecure=True, whip_picker="sticky:header=x-user"
        ) as t:
            t.for_each = ("--http2", "--parallel")
            # Each may dial by itself, and mitmproxy has at most 5 connections to one address.
            users = [[f"x-user: {number % 2}"] for number in range(MAX_CONNECTIONS - 1)]
            waiting = asyncio.get_running_loop().create_task(
                t.curl(*asking("https://testdom/", *users))
            )
            for _ in users:
                await asked.acquire()
            may_answer.set()
            counts = Counter((await waiting).output.split())
            assert counts.total() == len(users)
            placed = Counter(dial.agent.name.hostname for dial in t.watch.opened if dial.agent)
            assert set(counts) <= set(placed)  # the first connection may be anywhere
            assert all(count % 2 == 0 for count in counts.values()), "each user was there twice"

    run(main())


def test_a_request_of_another_user_is_dialled_for_by_itself() -> None:
    """Behind a load balancer, users share a connection to the proxy, not their rights."""
    seen: list[str | None] = []

    class Authorize:
        @hookimpl
        def whip_authorize_dial(self, caller: Caller) -> str | None:
            seen.append(caller.proxy_user)
            return "no eves" if caller.proxy_user == "eve" else None

    async def main() -> None:
        async with tunnel("a", plugins=[Authorize()], proxyauth="any") as t:
            reader, writer = await asyncio.open_connection("127.0.0.1", t.proxy.port)
            statuses = []
            for login in ("YWxpY2U6eA==", "YWxpY2U6eA==", "Ym9iOng=", "YWxpY2U6eA==", "ZXZlOng="):
                writer.write(
                    b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n"
                    b"Proxy-Authorization: Basic " + login.encode() + b"\r\n\r\n"
                )
                head = await read_head(reader)
                statuses.append(int(head.split()[1]))
                [length] = [
                    int(line.split(b":")[1])
                    for line in head.splitlines()
                    if line.lower().startswith(b"content-length")
                ]
                await reader.readexactly(length)
            writer.close()
            assert statuses == [200, 200, 200, 200, 403]
            assert seen == ["alice", "bob", "eve"], "alice's connection is used again"

    run(main())


def test_a_target_that_is_resolved_by_the_request_is_resolved_for_each() -> None:
    class Tenant:
        @hookimpl
        def whip_resolve(self, target: Target, caller: Caller) -> Target | None:
            if target.name != "shop" or caller.request is None:
                return None
            return Target(f"{caller.request.headers['x-tenant']}.testdom", target.port)

    async def main() -> None:
        async with tunnel("a", "b", plugins=[Tenant()]) as t:
            tenants = [[f"x-tenant: {name}"] for name in "abba"]
            finished = await t.curl(*asking("http://shop/", *tenants))
            assert finished.output.split() == list("abba")
            assert sorted(t.dialled) == ["a", "b"]

    run(main())


def test_with_fallback_an_alias_is_never_looked_for_in_public_dns() -> None:
    class Alias:
        @hookimpl
        def whip_resolve(self, target: Target) -> Target | None:
            if target.name == "broken.localhost":
                raise LookupError("no table of aliases")
            return Target("testdom", 80) if target.name == "shop.localhost" else None

    async def main() -> None:
        async with (
            service(answering(b"public")) as port,
            tunnel("a", plugins=[Alias()], whip_fallback=True) as t,
        ):
            finished = await t.curl(f"http://shop.localhost:{port}/")
            assert finished.output.split() == ["a"]
            finished = await t.curl(f"http://localhost:{port}/")
            assert finished.output == "public"
            finished = await t.curl(f"http://broken.localhost:{port}/")
            assert "no table of aliases" in finished.output

    run(main(), logs_errors=True)


def test_a_plugin_that_fails_for_a_request_fails_that_request_alone() -> None:
    class Fails:
        @hookimpl
        def whip_pick(self, candidates: Sequence[AgentView], caller: Caller) -> AgentView:
            assert caller.request is not None
            return candidates[int(caller.request.headers["x-number"])]

    async def main() -> None:
        async with tunnel("a", "b", plugins=[Fails()]) as t:
            numbers = [[f"x-number: {text}"] for text in ("1", "one", "0", "1")]
            t.for_each = ("--write-out", " %{http_code}\n")
            finished = await t.curl(*asking("http://testdom/", *numbers))
            lines = [line for line in finished.output.splitlines() if line.strip()]
            assert [line for line in lines if line in "ab"] == ["b", "a", "b"]
            assert [line.split()[-1] for line in lines if line.endswith(("0", "2"))] == [
                *("200", "502", "200", "200")
            ]

    run(main(), logs_errors=True)


def test_mitmproxys_method_is_put_back() -> None:
    before = GetHttpConnection.connection_spec_matches

    async def main() -> None:
        async with tunnel("a"):
            assert GetHttpConnection.connection_spec_matches is not before

    run(main())
    assert GetHttpConnection.connection_spec_matches is before
