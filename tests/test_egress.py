"""Agents whose only way out is a proxy: real ones, HTTP and SOCKS5, with and without logins."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from client_agent.egress import EgressProxy, egress_of
from processes import Process, free_ports, started
from programs import needs_program
from tunnel import (
    Log,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    service,
    until,
)
from whip_core import Broker
from whip_core.errors import SettingsError

LOGIN = "user", "pass:word@"
QUOTED = "user:pass%3Aword%40@"


# The setting


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "login"),
    [
        ("http://proxy:8888", "http", "proxy", 8888, None),
        ("proxy.example", "http", "proxy.example", 3128, None),
        ("socks5://[::1]", "socks5", "::1", 1080, None),
        (f"socks5h://{QUOTED}10.0.0.1:9/", "socks5", "10.0.0.1", 9, LOGIN),
    ],
)
def test_a_url_is_read(url: str, scheme: str, host: str, port: int, login: Any) -> None:
    found = EgressProxy.parse(url, "--egress-proxy")
    assert (found.scheme, found.host, found.port, found.login) == (scheme, host, port, login)
    assert "word" not in f"{found!r} {found}"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://proxy", "only http:// .* and socks5://"),
        ("http://:secret@:80", "is not a proxy's URL"),
        ("http://user:secret@proxy:port", "is not a proxy's URL"),
        ("http://user:secret@proxy/path", "is not a proxy's URL"),
    ],
)
def test_what_is_no_proxy_is_told_without_its_password(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"^--egress-proxy .*{why}") as raised:
        EgressProxy.parse(url, "--egress-proxy")
    assert "secret" not in str(raised.value)


def test_the_option_counts_before_the_environment_and_empty_means_none() -> None:
    environment = {"HTTPS_PROXY": "http://there", "NO_PROXY": "a.example"}
    found = egress_of(None, environment)
    assert found is not None
    assert (found.host, found.carries("localhost"), found.carries("a.example")) == (
        "there",
        False,
        False,
    )
    found = egress_of("http://here", environment)
    assert found is not None
    assert (found.host, found.carries("localhost")) == ("here", True)
    assert egress_of("", environment) is None
    assert egress_of(None, {}) is None


@pytest.mark.parametrize(
    ("entry", "host", "carried"),
    [
        ("example.com", "example.com", False),
        ("example.com", "a.example.com", False),
        (".example.com", "a.EXAMPLE.com.", False),
        ("*.example.com", "a.example.com", False),
        ("example.com", "badexample.com", True),
        ("10.0.0.0/8", "10.1.2.3", False),
        ("10.0.0.0/8", "11.1.2.3", True),
        ("::1", "[::1]", False),
        ("10.1.2.3", "::1", True),
        (" , *", "anything", False),
        ("", "anything", True),
    ],
)
def test_no_proxy_says_what_goes_directly(entry: str, host: str, carried: bool) -> None:
    assert EgressProxy.parse("proxy", "x", entry).carries(host) is carried


# Real proxies


@asynccontextmanager
async def tinyproxy(folder: Path, login: bool) -> AsyncIterator[tuple[str, Process]]:
    [port] = free_ports(1)
    lines = ["Listen 127.0.0.1", f"Port {port}", "Allow 127.0.0.1", "LogLevel Connect"]
    # Its passwords have no special characters.
    credentials = "user:password@" if login else ""
    lines += ["BasicAuth user password"] if login else []
    (folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    async with started("tinyproxy", "-d", "-c", folder / "tinyproxy.conf") as process:
        await until_listening(port)
        yield f"http://{credentials}127.0.0.1:{port}", process


@asynccontextmanager
async def microsocks(_: Path, login: bool) -> AsyncIterator[tuple[str, Process]]:
    [port] = free_ports(1)
    arguments = ["-u", LOGIN[0], "-P", LOGIN[1]] if login else []
    async with started("microsocks", "-i", "127.0.0.1", "-p", str(port), *arguments) as process:
        await until_listening(port)
        yield f"socks5://{QUOTED if login else ''}127.0.0.1:{port}", process


async def until_listening(port: int) -> None:
    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    await until(listens)


Proxies = Callable[[Path, bool], AbstractAsyncContextManager[tuple[str, Process]]]
PROXIES = pytest.mark.parametrize(
    "proxy",
    [
        pytest.param(tinyproxy, marks=needs_program("tinyproxy"), id="connect"),
        pytest.param(microsocks, marks=needs_program("microsocks"), id="socks5"),
    ],
)


@PROXIES
@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plaintext"])
def test_control_and_reverse_connections_go_through_the_proxy(
    tmp_path: Path, proxy: Proxies, login: bool, tls: bool
) -> None:
    async def main() -> None:
        async with (
            proxy(tmp_path, login) as (url, process),
            service(echo) as port,
            Broker(broker_settings(tls=tls or None)) as broker,
        ):
            settings = agent_settings(
                broker.control_port,
                ports=f"80={port}",
                tls=client_files() if tls else None,
                egress=egress_of(url, {}),
            )
            async with running(settings) as agent:
                await agent.wait_registered()
                for _ in range(3):
                    streams = await broker.open_connection("instance1.testdom", 80)
                    assert await exchange(streams, b"x" * 100_000) == b"x" * 100_000
                [view] = broker.agents
                # Without the proxy nothing is left: everything went through it.
                await process.end()
                await until(lambda: not broker.agents)
                assert view.address[0] == "127.0.0.1"

    run(main())


@PROXIES
def test_what_the_proxy_refuses_is_said_in_its_words(tmp_path: Path, proxy: Proxies) -> None:
    async def main() -> None:
        [nobody] = free_ports(1)
        async with proxy(tmp_path, True) as (url, _):
            wrong = url.replace("pass", "wrong")
            settings = agent_settings(nobody, ports="80", egress=egress_of(wrong, {}))
            with Log() as log:
                async with running(settings):
                    line = await log.until("no broker at localhost")
            assert "the egress proxy" in line
            assert "wrong" not in line
            settings = agent_settings(nobody, ports="80", egress=egress_of(url, {}))
            with Log() as log:
                async with running(settings):
                    assert "the egress proxy" in await log.until("no broker at localhost")

    run(main())


def test_a_proxy_that_is_not_there_is_said_to_be_so() -> None:
    async def main() -> None:
        [nobody] = free_ports(1)
        egress = egress_of(f"http://127.0.0.1:{nobody}", {})
        with Log() as log:
            async with running(agent_settings(nobody, ports="80", egress=egress)):
                line = await log.until("no broker at localhost")
        assert f"the egress proxy http://127.0.0.1:{nobody}: " in line

    run(main())
