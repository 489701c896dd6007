"""`whip client` as its user meets it: what a wrong call is told, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from client_agent import Agent, command
from processes import started
from programs import path_of
from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    run,
    saying,
    service,
)
from whip_core import Broker, TLSFiles
from whip_core.cli import main
from whip_core.errors import StreamCut

ENDPOINT = "localhost:50051"
PLAIN = ("--tls=false", "--metrics-listen=")
NAMED = ("--hostname=instance1", "--domain=testdom", "--ports=80")


def tls(files: TLSFiles, **changes: Path) -> list[str]:
    paths = {"key": files.key, "cert": files.cert, "ca-cert": files.ca}
    paths |= {name.replace("_", "-"): path for name, path in changes.items()}
    return [f"--tls-{name}-path={path}" for name, path in paths.items()]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WHIP_")]:
        monkeypatch.delenv(name)


def refusal(*arguments: str) -> str:
    """The one line that a wrong call is refused with, and nothing else."""
    result = CliRunner().invoke(main, ["client", *arguments])
    assert result.exit_code == 2, result.output
    [line] = result.output.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(" (see: main client --help)")
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*PLAIN, *NAMED], "Missing argument 'ENDPOINT…'"),
        ([*PLAIN, "--ports=80", ENDPOINT], "Missing option '--domain'"),
        ([*PLAIN, "--domain=testdom", ENDPOINT], "Missing option '--ports'"),
        ([*PLAIN, *NAMED, "--nonsense", ENDPOINT], "No such option"),
        ([*PLAIN, *NAMED, "--label=a=", "--label=a=b", ENDPOINT], "--label 'a' is given twice"),
        ([*PLAIN, *NAMED, "--tls=maybe", ENDPOINT], "'maybe' is neither true nor false"),
        ([*PLAIN, *NAMED, "--log-level=loud", ENDPOINT], "'loud' is not one of"),
        ([*PLAIN, *NAMED, "--drain-timeout=-1", ENDPOINT], "--drain-timeout"),
        ([*PLAIN, *NAMED, "--ports=65536", ENDPOINT], "'65536' is not a port (1 to 65535)"),
        ([*PLAIN, *NAMED, "--ports=http", ENDPOINT], "'http' is not a port (1 to 65535)"),
        (
            [*PLAIN, "--domain=testdom", "--ports=80=unix:", ENDPOINT],
            "the socket's path is missing",
        ),
        ([*PLAIN, *NAMED, "--ports=80", ENDPOINT], "--ports exposes port 80 twice"),
        ([*PLAIN, "--domain=testdom", "--ports=", ENDPOINT], "--ports is empty"),
        ([*PLAIN, *NAMED, "--hostname=two words", ENDPOINT], "--hostname and --domain: "),
        ([*PLAIN, *NAMED, "--domain=-", ENDPOINT], "--hostname and --domain: "),
        ([*PLAIN, *NAMED, "--label=zone", ENDPOINT], "--label 'zone' is not KEY=VALUE"),
        ([*PLAIN, *NAMED, "https://localhost"], "is not an endpoint (it is not a URL"),
        ([*PLAIN, *NAMED, ENDPOINT, "localhost:http"], "'http' is not a port"),
        ([*PLAIN, *NAMED, "192.0.2.1"], "refusing to connect to 192.0.2.1 without TLS"),
        ([*NAMED, "--tls=false", "--metrics-listen=nowhere", ENDPOINT], "is not HOST:PORT"),
        (
            [*NAMED, ENDPOINT],
            "TLS is on, so give --tls-key-path, --tls-cert-path, --tls-ca-cert-path",
        ),
        (
            [*NAMED, "--tls-key-path=a", "--tls-ca-cert-path=b", ENDPOINT],
            "TLS is on, so give --tls-cert-path (`whip pki --help` makes certificates)",
        ),
    ],
)
def test_a_wrong_call_is_told_in_one_line_what_to_do(arguments: list[str], said: str) -> None:
    assert said in refusal(*arguments)


def test_each_missing_mismatched_or_mixed_up_file_is_named(tmp_path: Path) -> None:
    files, other = client_files(), client_files("other.testdom")
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.touch()
    for name in ("key", "cert", "ca_cert"):
        option = f"--tls-{name.replace('_', '-')}-path"
        said = refusal(*NAMED, *tls(files, **{name: missing}), ENDPOINT)
        assert f"{option} {missing} does not exist" in said
        said = refusal(*NAMED, *tls(files, **{name: empty}), ENDPOINT)
        assert f"{option} {empty} holds no" in said
        assert f"{option} {tmp_path} is a directory" in refusal(
            *NAMED, *tls(files, **{name: tmp_path}), ENDPOINT
        )
    said = refusal(*NAMED, *tls(files, key=files.cert, cert=files.key), ENDPOINT)
    assert "are two options swapped?" in said
    said = refusal(*NAMED, *tls(files, key=other.key), ENDPOINT)
    assert f"--tls-key-path {other.key} does not belong to --tls-cert-path {files.cert}" in said


@contextmanager
def taken_port(port: int = 0) -> Iterator[int]:
    """A port of loopback that is in use, by us or by somebody who came before."""
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen()
        except OSError:
            yield port
        else:
            yield sock.getsockname()[1]


def test_a_chosen_metrics_port_that_is_in_use_is_an_error() -> None:
    with taken_port() as port:
        listen = f"--metrics-listen=127.0.0.1:{port}"
        result = CliRunner().invoke(main, ["client", *NAMED, "--tls=false", listen, ENDPOINT])
    assert result.exit_code == 1
    assert result.output == (
        f"Error: cannot serve metrics at 127.0.0.1:{port}: Address already in use; "
        "choose another --metrics-listen\n"
    )


# The process


def test_the_default_metrics_port_in_use_is_a_warning_and_the_agent_goes_on() -> None:
    async def main() -> None:
        with taken_port(9465):
            async with (
                Broker(broker_settings()) as broker,
                started(
                    *("whip", "client", *NAMED, "--tls=false"), f"localhost:{broker.control_port}"
                ) as client,
            ):
                await client.says("cannot serve metrics at 127.0.0.1:9465")
                await client.says("registered instance1.testdom")

    run(main())


def test_every_option_can_come_from_the_environment() -> None:
    files = client_files("instance7.testdom")
    watch = Watch()

    async def main() -> None:
        async with (
            service(saying(b"hello")) as port,
            Broker(broker_settings(tls=True), plugins=[watch]) as broker,
        ):
            env = {
                "WHIP_HOSTNAME": "instance7",
                "WHIP_DOMAIN": "testdom",
                "WHIP_PORTS": f"80={port}",
                "WHIP_LABEL": "zone=eu",
                "WHIP_TLS_KEY_PATH": str(files.key),
                "WHIP_TLS_CERT_PATH": str(files.cert),
                "WHIP_TLS_CA_CERT_PATH": str(files.ca),
                "WHIP_METRICS_LISTEN": "127.0.0.1:0",
                "WHIP_LOG_LEVEL": "warning",
            }
            async with started("whip", "client", f"localhost:{broker.control_port}", env=env) as it:
                await watch.until(lambda: len(watch.joined) == 1)
                [agent] = watch.joined
                assert (str(agent.name), agent.labels) == ("instance7.testdom", {"zone": "eu"})
                reader, writer = await broker.open_connection("instance7.testdom", 80)
                assert await reader.read() == b"hello"
                writer.close()
                it.signal(signal.SIGTERM)
                assert await it.ended() == 0
                assert it.lines == []

    run(main())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_an_agent_that_serves_does_without_the_library_that_makes_certificates() -> None:
    async def main() -> None:
        async with (
            service(saying(b"hello")) as port,
            Broker(broker_settings(tls=True)) as broker,
            started(
                *("whip", "client", "--hostname=instance1", "--domain=testdom"),
                *(f"--ports=80={port}", *tls(client_files()), "--metrics-listen=127.0.0.1:0"),
                f"localhost:{broker.control_port}",
            ) as client,
        ):
            reader, writer = await broker.open_connection("instance1.testdom", 80, wait=20)
            assert await reader.read() == b"hello"
            writer.close()
            mapped = Path(f"/proc/{client.pid}/maps").read_text()
            assert "grpc" in mapped
            assert "cryptography" not in mapped  # 9 MB of the agent's 65 (DESIGN §12: 60)

    run(main())


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT,)])
def test_a_signal_lets_streams_finish_and_the_exit_status_is_0(numbers: tuple[int, ...]) -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            started(
                *("whip", "client", *PLAIN, "--hostname=a", "--domain=b", f"--ports=80={port}"),
                f"localhost:{broker.control_port}",
            ) as client,
        ):
            reader, writer = await broker.open_connection("a.b", 80, wait=20)
            for number in numbers:  # at once they count as one
                client.signal(number)
            await client.says("stopping: streams have 30 s to finish")
            writer.write(b"still here")
            writer.write_eof()
            assert await reader.read() == b"still here"
            writer.close()
            assert await client.ended() == 0
            assert "Traceback" not in str(client)

    run(main())


def test_a_second_signal_ends_it_at_once_and_its_streams_are_cut() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            started(
                *("whip", "client", *PLAIN, "--hostname=a", "--domain=b", f"--ports=80={port}"),
                f"localhost:{broker.control_port}",
            ) as client,
        ):
            reader, writer = await broker.open_connection("a.b", 80, wait=20)
            client.signal(signal.SIGTERM)
            await client.says("stopping")
            assert await client.insisted() == 0
            with pytest.raises(StreamCut):
                await reader.read()
            writer.close()
            await client.says("stopped at once: streams that still ran are cut")
            assert "Traceback" not in str(client)

    run(main())


def test_without_streams_none_is_said_to_be_cut(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Insisting:
        def __init__(self, _: object, at_once: Callable[[], None]) -> None:
            self.listen = lambda: asyncio.get_running_loop().call_soon(at_once)

    monkeypatch.setattr(command, "StopSignals", Insisting)
    agent = Agent(agent_settings("[::1]:1", ports="80", hostname="instance1"))
    run(command._serve(agent, "", chosen=False))
    assert "streams that still ran" not in caplog.text


def test_a_broker_that_is_not_there_is_told_in_one_line_and_waited_for() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker:
            port = broker.control_port
        async with started("whip", "client", *PLAIN, *NAMED, f"localhost:{port}") as client:
            line = await client.says("no broker at 127.0.0.1")
            assert line.endswith("Connection refused")
            async with Broker(broker_settings(grpc_listen_port=port)):
                await client.says("registered instance1.testdom at the broker 127.0.0.1")
            client.signal(signal.SIGTERM)
            assert await client.ended() == 0
        assert len([line for line in client.lines if "no broker at" in line]) == 1
        assert not [line for line in client.lines if "Traceback" in line]

    run(main())


def test_an_open_file_limit_that_is_low_is_raised_for_the_streams() -> None:
    count = 120  # two sockets each: with 64 files in all it would end early

    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            started(
                *("sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", path_of("whip"), "client", *PLAIN),
                *("--hostname=a", "--domain=b", f"--ports=80={port}"),
                f"localhost:{broker.control_port}",
            ),
        ):
            opened = [await broker.open_connection("a.b", 80, wait=20) for _ in range(count)]
            for reader, writer in opened:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            await asyncio.gather(*(_close(writer) for _, writer in opened))

    async def _close(writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    run(main())
