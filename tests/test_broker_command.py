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
from tunnel import client_files, run, server_files
from whip_core import connect
from whip_core.cli import main as whip
from whip_core.errors import BrokerClosed
from whip_core.settings import TLSFiles

QUIET = ("--tls=false", "--metrics-listen=")


def over_tls(files: TLSFiles) -> tuple[str, ...]:
    """Instead of `QUIET`."""
    paths = {"key": files.key, "cert": files.cert, "ca-cert": files.ca}
    return ("--metrics-listen=", *(f"--tls-{name}-path={path}" for name, path in paths.items()))


@asynccontextmanager
async def broker(
    folder: Path, *arguments: str, address: str = "", quiet: tuple[str, ...] = QUIET
) -> AsyncIterator[tuple[Process, int, str]]:
    """A running `whip broker`; also its control port and its dial socket's address."""
    control, reverse = free_ports(2)
    address = address or f"unix:{folder / 'dial.sock'}"
    async with started(
        *("whip", "broker", *quiet, "--whip-external-tcp-address=localhost"),
        *(f"--whip-grpc-listen-port={control}", f"--whip-tcp-listen-port={reverse}"),
        *(f"--dial-listen={address}", *arguments),
    ) as process:
        await process.says("agents register at port")
        yield process, control, address


@asynccontextmanager
async def agent(control: int, port: int, quiet: tuple[str, ...] = QUIET) -> AsyncIterator[Process]:
    async with started(
        *("whip", "client", *quiet, f"localhost:{control}", "--hostname=instance1"),
        *("--domain=testdom", f"--ports=80={port}"),
    ) as process:
        await process.says("registered instance1.testdom")
        yield process


@asynccontextmanager
async def proxy(address: str, quiet: tuple[str, ...] = QUIET) -> AsyncIterator[int]:
    [port] = free_ports(1)
    async with started(
        *("whip", "proxy", f"--broker={address}", *quiet, f"--proxy-listen-port={port}"),
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


def test_over_tls_a_proxy_and_a_forward_show_a_clients_certificate(tmp_path: Path) -> None:
    async def main() -> None:
        dials, local = free_ports(2)
        ours, theirs = (over_tls(client_files(name)) for name in ("proxy1.dialers", "*.testdom"))
        async with (
            service(answering(b"from inside")) as port,
            broker(
                tmp_path,
                "--dial-trust=proxy1.dialers",
                address=f"localhost:{dials}",
                quiet=over_tls(server_files("localhost")),
            ) as (process, control, address),
            agent(control, port, theirs),
            proxy(address, ours) as proxy_port,
            started(
                *("whip", "forward", f"--broker={address}", *ours),
                f"{local}:instance1.testdom:80",
            ) as forward,
        ):
            through = f"http://localhost:{proxy_port}"
            got = await curl("--proxy", through, "http://instance1.testdom/")
            assert got.output == "from inside", str(process)
            await forward.says("forwarding")
            assert (await curl(f"http://localhost:{local}/")).output == "from inside"

    run(main(), patience=110)


def test_a_brokers_certificate_cannot_dial_and_a_proxy_says_so_at_once() -> None:
    files = over_tls(server_files("localhost"))
    result = CliRunner().invoke(whip, ("proxy", "--broker=localhost:1", *files))
    assert result.exit_code == 2, result.output
    assert "is the certificate of a server, but an agent needs" in result.output


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
            process.signal(signal.SIGINT)  # at once they count as one
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
        (("broker", "--dial-listen=nowhere"), "'nowhere' is not a dial socket"),
        (("broker", "--dial-listen=/a", "--dial-allow=a b"), "'a b' is not a host name"),
        (("forward", "--broker=nowhere", "1:a.b:1"), "'nowhere' is not a dial socket"),
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
