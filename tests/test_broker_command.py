"""`whip broker` alone, and what dials through it: `whip proxy`, `whip forward`, a program."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from mitm import answering, confdir, curl, service
from processes import Process, free_ports, started
from tunnel import run
from whip_core import connect
from whip_core.cli import main as whip
from whip_core.errors import BrokerClosed

QUIET = ("--tls=false", "--metrics-listen=")


@asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[tuple[Process, int, str]]:
    """A running `whip broker`; also its control port and its dial socket's address."""
    control, reverse = free_ports(2)
    address = f"unix:{folder / 'dial.sock'}"
    async with started(
        *("whip", "broker", *QUIET, "--whip-external-tcp-address=localhost"),
        *(f"--whip-grpc-listen-port={control}", f"--whip-tcp-listen-port={reverse}"),
        f"--dial-listen={address}",
    ) as process:
        await process.says("agents register at port")
        yield process, control, address


@asynccontextmanager
async def agent(control: int, port: int) -> AsyncIterator[Process]:
    async with started(
        *("whip", "client", *QUIET, f"localhost:{control}", "--hostname=instance1"),
        *("--domain=testdom", f"--ports=80={port}"),
    ) as process:
        await process.says("registered instance1.testdom")
        yield process


@asynccontextmanager
async def proxy(address: str) -> AsyncIterator[int]:
    [port] = free_ports(1)
    async with started(
        *("whip", "proxy", f"--broker={address}", *QUIET, f"--proxy-listen-port={port}"),
        *("--", "--set", f"confdir={confdir()}"),
    ) as process:
        await process.says("proxy listening")
        yield port


def test_curl_through_a_proxy_without_a_broker_which_is_started_twice(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            service(answering(b"from inside")) as port,
            broker(tmp_path) as (process, control, address),
            agent(control, port) as client,
        ):
            for _ in range(2):
                async with proxy(address) as proxy_port:
                    through = f"http://localhost:{proxy_port}"
                    got = await curl("--proxy", through, "http://instance1.testdom/")
                    assert got.output == "from inside", str(process)
                    missing = await curl("-w%{http_code}", "--proxy", through, "instance2.testdom")
                    assert "no agent is registered under that name" in missing.output
                    assert missing.output.endswith("502")
            registrations = [line for line in client.lines if "registered" in line]
            assert len(registrations) == 1, "the agent noticed that the proxy was restarted"

    run(main(), patience=110)


def test_a_broker_that_is_stopped_lets_streams_finish_and_takes_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            service(answering(b"from inside")) as port,
            broker(tmp_path) as (process, control, address),
            agent(control, port),
            await connect(address) as remote,
        ):
            reader, writer = await remote.open_connection("instance1.testdom", 80, wait=10)
            process.signal(signal.SIGTERM)
            while True:
                try:
                    _, other = await remote.open_connection("instance1.testdom", 80)
                except BrokerClosed:
                    break
                other.close()
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert await reader.readuntil(b"from inside")
            writer.close()
            assert await process.ended() == 0
            assert "are cut" not in str(process)

    run(main())


def test_forward_and_a_program_share_a_broker(tmp_path: Path) -> None:
    async def main() -> None:
        [port] = free_ports(1)
        async with (
            service(answering(b"from inside")) as inside,
            broker(tmp_path) as (_, control, address),
            agent(control, inside),
            started(
                *("whip", "forward", f"--broker={address}", *QUIET),
                f"{port}:instance1.testdom:80",
            ) as forward,
            await connect(address) as remote,
        ):
            await forward.says("forwarding")
            assert (await curl(f"http://localhost:{port}/")).output == "from inside"
            reader, writer = await remote.open_connection("instance1.testdom", 80)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert await reader.readuntil(b"from inside")
            writer.close()
            [view] = remote.agents
            assert view.name.full == "instance1.testdom"

    run(main(), patience=110)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("broker",), "give --dial-listen"),
        (("broker", "--dial-listen=nowhere"), "'nowhere' is no dial socket"),
        (("broker", "--dial-listen=/a", "--dial-allow=a b"), "'a b' is not a host name"),
        (("forward", "--broker=nowhere", "1:a.b:1"), "'nowhere' is no dial socket"),
        (("forward", "--broker=/a", "--picker=x", "1:a.b:1"), "--picker is for a broker"),
        (("proxy", "--broker=/a", "--plugin=x"), "--plugin is for a broker"),
        (("proxy", "--broker=a.b:1", "--tls=true"), "TLS is on, so give --tls-key-path"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(arguments: tuple[str, ...], said: str) -> None:
    extra = ("--tls=false", "--whip-external-tcp-address=localhost")
    given = arguments if arguments[0] != "broker" else (*arguments, *extra)
    result = CliRunner().invoke(whip, given)
    assert result.exit_code == 2, result.output
    assert said in result.output.splitlines()[-1]


def test_without_a_broker_a_forward_says_so_and_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        [port] = free_ports(1)
        async with started(
            *("whip", "forward", f"--broker={tmp_path / 'none.sock'}", *QUIET),
            f"{port}:instance1.testdom:80",
        ) as forward:
            await forward.says("no broker can be reached")
            await forward.says("forwarding")
            with pytest.raises(OSError):
                reader, _ = await asyncio.open_connection("localhost", port)
                assert await reader.read() == b""
                raise OSError
            await forward.says("is `whip broker` running?")

    run(main())


def test_a_broker_that_relays_for_nobody_is_told_so() -> None:
    given = [*QUIET, "--whip-external-tcp-address=localhost", "--dial-listen=unix:/tmp/x"]
    result = CliRunner().invoke(whip, ["broker", *given, "--relay"])
    assert result.exit_code == 2
    assert "--relay is for brokers that are joined: give --fabric, too" in result.output
