"""What systemd is told by broker and agent, read at the other end of its socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import free_ports, started
from tunnel import broker_settings, run
from whip_core import Broker, systemd
from whip_core.operating import Listening, operating
from whip_core.systemd import Notifier, notifying


class Systemd:
    """The socket that a service's states come to."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self.states: list[str] = []

    async def until(self, state: str) -> None:
        """Wait until that has been told, at some time."""
        loop = asyncio.get_running_loop()
        while state not in self.states:
            text = (await loop.sock_recv(self._socket, 4096)).decode()
            self.states += text.splitlines()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(tmp_path / "notify")
    yield found
    found.close()


def test_a_service_is_ready_once_it_can_work_and_says_what_keeps_it(
    manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "LOOK_INTERVAL", 0.01)
    why: list[str | None] = ["registered at\nno broker"]

    async def main() -> None:
        async with notifying(lambda: why[0], manager.environ):
            await manager.until("STATUS=not ready: registered at?no broker")
            assert manager.states == ["STATUS=not ready: registered at?no broker"]
            why[0] = None
            await manager.until("STATUS=ready")
            assert "READY=1" in manager.states
        await manager.until("STOPPING=1")
        assert "WATCHDOG=1" not in manager.states

    run(main())


def test_the_watchdog_is_fed_in_half_its_time_while_the_loop_runs(manager: Systemd) -> None:
    environ = {**manager.environ, "WATCHDOG_USEC": "40000", "WATCHDOG_PID": str(os.getpid())}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with notifying(lambda: None, environ):
            began = loop.time()
            for _ in range(3):
                await manager.until("WATCHDOG=1")
                manager.states.clear()
            assert loop.time() - began >= 0.04

    run(main())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "@nobody-listens-here"},
        {"NOTIFY_SOCKET": "/" + "x" * 300},
    ],
)
def test_where_nobody_listens_nothing_is_lost(environ: dict[str, str]) -> None:
    async def main() -> None:
        async with notifying(lambda: None, environ):
            Notifier(environ).tell("READY=1")

    run(main())


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_is_only_for_whom_it_is_meant(
    changes: dict[str, str], seconds: float | None
) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", **changes}).watchdog_seconds == seconds


def test_an_abstract_socket_is_reached() -> None:
    name = f"whip-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).tell("READY=1", "STATUS=x")
        assert sock.recv(100) == b"READY=1\nSTATUS=x"


def test_a_broker_is_ready_when_it_listens(
    manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.environ["NOTIFY_SOCKET"])
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    async def main() -> None:
        async with Broker(broker_settings()) as broker, operating(broker, Listening("", True, "")):
            await manager.until("READY=1")
        await manager.until("STOPPING=1")

    run(main())


def test_a_real_agent_is_ready_when_it_is_registered_and_says_when_it_stops(
    manager: Systemd,
) -> None:
    async def main() -> None:
        [port] = free_ports(1)
        async with started(
            *("whip", "client", "--hostname=instance1", "--domain=testdom", "--ports=80"),
            *("--tls=false", "--metrics-listen=", f"127.0.0.1:{port}"),
            env={**manager.environ, "WATCHDOG_USEC": "2000000"},
        ) as agent:
            await manager.until("STATUS=not ready: registered at no broker")
            await manager.until("WATCHDOG=1")
            assert "READY=1" not in manager.states
            async with Broker(broker_settings(grpc_listen_port=port)):
                await manager.until("READY=1")
                agent.signal(signal.SIGTERM)
                await manager.until("STOPPING=1")
                assert await agent.ended() == 0

    run(main())
