"""Local ports that lead to a service: what is asked for, and what goes through."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from programs import path_of
from tunnel import (
    agent_settings,
    broker_settings,
    echo,
    exchange,
    run,
    running,
    saying,
    scripted,
    service,
    until,
)
from whip_core import Broker, control
from whip_core.commands.forward import forward
from whip_core.dial_address import DialAddress
from whip_core.errors import SettingsError
from whip_core.forward import ForwardSpec
from whip_core.names import Target
from whip_core.sockets import abort_with_reset

PLAIN = ("--tls=false", "--whip-external-tcp-address=localhost", "--metrics-listen=")
FREE_PORTS = ("--whip-grpc-listen-port=0", "--whip-tcp-listen-port=0")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("15432:db1.testdom:5432", ForwardSpec(Target("db1.testdom", 5432), "127.0.0.1", 15432)),
        ("0:DB1.testdom.:5432", ForwardSpec(Target("db1.testdom", 5432), "127.0.0.1", 0)),
        ("10.0.0.7:80:a.b:22", ForwardSpec(Target("a.b", 22), "10.0.0.7", 80)),
        ("[::1]:80:a.b:22", ForwardSpec(Target("a.b", 22), "::1", 80)),
        ("unix:/run/x:y.sock:a.b:22", ForwardSpec(Target("a.b", 22), path=Path("/run/x:y.sock"))),
    ],
)
def test_a_forward_is_listen_name_and_port(text: str, spec: ForwardSpec) -> None:
    assert ForwardSpec.parse(text) == spec


def test_a_socket_in_ones_home_is_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    spec = ForwardSpec.parse("unix:~/db.sock:db1.testdom:5432")
    assert spec.path == DialAddress.parse("unix:~/db.sock").path == Path("/home/me/db.sock")
    with pytest.raises(SettingsError, match="home directory"):
        ForwardSpec.parse("unix:~nobody-at-all/db.sock:db1.testdom:5432")
    with pytest.raises(SettingsError, match="home directory"):
        DialAddress.parse("unix:~nobody-at-all/dial.sock")


@pytest.mark.parametrize(
    "text",
    [
        *("", "80", "80:a.b", ":a.b:80", "x:a.b:80", "99999:a.b:80", "unix::a.b:80"),
        *("80:a.b:x", "80:a.b:0", "80:a b:80", "80:a.b:-1"),
    ],
)
def test_what_is_no_forward_is_said_in_one_line_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape("write LISTEN:NAME:PORT")) as caught:
        ForwardSpec.parse(text)
    assert "\n" not in str(caught.value)


def test_what_a_client_sends_comes_back_and_both_directions_end() -> None:
    async def main() -> None:
        async with (
            service(echo) as port,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
            broker.forward("instance1.testdom", 80) as address,
        ):
            await agent.wait_registered()
            assert isinstance(address, tuple)
            data = os.urandom(300_000)
            assert await exchange(await asyncio.open_connection(*address), data) == data

    run(main())


def test_a_service_that_speaks_first_is_heard_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "db.sock"

    async def main() -> None:
        spec = ForwardSpec(Target("instance1.testdom", 80), path=path)
        async with (
            service(saying(b"SSH-2.0\r\n")) as port,
            Broker(broker_settings()) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
            broker.forwarding(spec),
        ):
            await agent.wait_registered()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b"SSH-2.0\r\n"
            writer.close()
        assert not path.exists()

    run(main())


def test_a_dial_that_fails_resets_the_client_and_disturbs_nobody_else() -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings()) as broker,
            broker.forward("nobody.testdom", 80) as address,
        ):
            assert isinstance(address, tuple)
            for _ in range(2):
                reader, writer = await asyncio.open_connection(*address)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()

    run(main())


def test_a_client_that_has_gone_is_dialled_for_no_more() -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings()) as broker,
            broker.forwarding(ForwardSpec.parse("0:instance1.testdom:80"), wait=60) as address,
        ):
            assert isinstance(address, tuple)
            admission = broker._dialer._admission
            _, stays = await asyncio.open_connection(*address)
            for _ in range(3):
                _, writer = await asyncio.open_connection(*address)
                await until(lambda: admission._dials == 2)
                writer.write(b"x")
                abort_with_reset(writer.transport)
                await until(lambda: admission._dials == 1)
            stays.write_eof()  # who says no more may still listen
            async with (
                service(saying(b"hello")) as port,
                running(agent_settings(broker.control_port, ports=f"80={port}")),
            ):
                reader, writer = await asyncio.open_connection(*address)
                assert await reader.read() == b"hello"
                writer.close()
            stays.close()

    run(main())


def test_a_client_that_has_gone_takes_back_what_its_agent_was_asked_at_once() -> None:
    async def main() -> None:
        async with (
            Broker(broker_settings()) as broker,
            scripted(broker) as agent,
            broker.forwarding(ForwardSpec.parse("0:instance1.testdom:80")) as address,
        ):
            assert isinstance(address, tuple)
            await agent.expect(control.Registered)
            reverse = await agent.connect_framed()
            await until(lambda: broker.agents[0].parked == 1)
            _, writer = await asyncio.open_connection(*address)
            await reverse.asked()
            abort_with_reset(writer.transport)
            await reverse.lost()
            assert broker.agents[0].streams == 0

    run(main())


def test_a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not(tmp_path: Path) -> None:
    stale, live, file = (tmp_path / name for name in ("stale", "live", "file"))
    file.write_text("mine")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))

    async def main() -> None:
        async with Broker(broker_settings()) as broker:
            target = Target("a.testdom", 80)
            async with (
                broker.forwarding(ForwardSpec(target, path=stale)),
                broker.forwarding(ForwardSpec(target, path=live)),
            ):
                for path in (live, file):
                    with pytest.raises(SettingsError, match="choose another path"):
                        async with broker.forwarding(ForwardSpec(target, path=path)):
                            pass

    run(main())
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Missing argument"),
        (("80:a.b",), "is not a forward"),
        (("15432:a.b:80",), "--whip-external-tcp-address"),
        (("15432:a.b:80", "--whip-external-tcp-address=localhost"), "--tls-key-path"),
        (("15432:a.b:80", *PLAIN, "--picker=best"), "no picker 'best'"),
        (("15432:a.b:80", *PLAIN, "--plugin=nowhere.py"), "cannot load plugin nowhere.py"),
        (("15432:a.b:80", *PLAIN, "--plugin-set=a.b=c"), "a.b: there is no plugin a"),
        (("15432:a.b:80", *PLAIN, "--wait=soon"), "--wait"),
        (("15432:a.b:80", *PLAIN, "--fabric=foo"), "no plugin makes such a fabric"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(forward, list(arguments))
    assert result.exit_code == 2, result.output
    assert told in result.output.strip().splitlines()[-1]
    assert "Traceback" not in result.output


def test_a_port_that_is_taken_is_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [path_of("whip"), "forward", f"{port}:a.testdom:80", *PLAIN, *FREE_PORTS],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert f"port {port} of 127.0.0.1: Address already in use; choose another LISTEN" in line
    assert "Traceback" not in done.stderr


def test_sigterm_ends_it_with_status_0_and_takes_its_socket_away(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with subprocess.Popen(
        [path_of("whip"), "forward", f"unix:{path}:a.testdom:80", *PLAIN, *FREE_PORTS],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "forwarding" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not path.exists()


def test_a_terminal_that_goes_away_takes_it_along() -> None:
    arguments = ["0:a.testdom:80", *PLAIN, *FREE_PORTS, "--audit-log=/dev/null"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(path_of("whip"), ["whip", "forward", *arguments])
    said = b""
    while b"forwarding" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGHUP
