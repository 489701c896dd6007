"""The control socket: whose it is, where it is, and what may be asked over it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tunnel import broker_settings, run, scripted
from web import ask, opened
from whip_core import Broker, control, control_call, control_socket
from whip_core.control_call import ControlCallFailed
from whip_core.errors import SettingsError
from whip_core.monitor import serving
from whip_core.operating import Listening, operating
from whip_core.status import Status


@asynccontextmanager
async def operated(path: Path | str | None) -> AsyncIterator[Broker]:
    chosen = str(path) if path is not None else None
    async with (
        Broker(broker_settings()) as broker,
        operating(broker, Listening("", True, chosen)),
    ):
        yield broker


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder for what runs."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "whip"


def test_only_its_owner_can_open_it_and_it_goes_with_the_broker(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert (await ask(path, "/v1/agents")).json["agents"] == []
        assert not path.exists()

    old = os.umask(0)
    try:
        run(main())
    finally:
        os.umask(old)


def test_by_default_it_is_in_the_users_own_folder_named_for_the_broker(login: Path) -> None:
    async def main() -> None:
        async with operated(None) as one, operated(None) as two:
            assert stat.S_IMODE(login.stat().st_mode) == 0o700
            expected = [login / f"broker-{each.control_port}.sock" for each in (one, two)]
            found = [path for path in control_socket.running() if path.parent == login]
            assert found == sorted(expected)
        assert list(login.iterdir()) == []

    run(main())


def test_a_folder_that_others_may_write_to_is_not_used(
    login: Path, caplog: pytest.LogCaptureFixture
) -> None:
    login.mkdir()
    login.chmod(0o777)

    async def main() -> None:
        async with operated(None):
            assert list(login.iterdir()) == []

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "not a folder that only this user can write to" in caplog.text


def test_a_folder_that_is_a_link_is_not_used(login: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    login.symlink_to(elsewhere)

    async def main() -> None:
        async with operated(None):
            assert list(elsewhere.iterdir()) == []

    run(main())


def test_empty_is_none(login: Path) -> None:
    async def main() -> None:
        async with operated(""):
            assert not login.exists()

    run(main())


def test_the_socket_of_a_broker_that_is_gone_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def main() -> None:
        async with operated(path):
            assert (await ask(path, "/v1/broker")).status == 200

    run(main())


def test_in_the_default_folder_what_killed_brokers_left_is_removed(login: Path) -> None:
    login.mkdir(mode=0o700, exist_ok=True)
    names = ("broker-1.sock", "broker-2.sock", "broker-3.sock", "other.sock")
    killed, starting, alive, foreign = (login / name for name in names)
    listening = socket.socket(socket.AF_UNIX)
    for path in (killed, starting, foreign):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    listening.bind(str(alive))
    listening.listen()
    for path in (killed, alive, foreign):
        os.utime(path, (0, 0))

    async def main() -> None:
        async with operated(None):
            assert not killed.exists()
            assert all(path.exists() for path in (starting, alive, foreign))

    with listening:
        run(main())


@pytest.mark.parametrize("what", ["broker", "file", "long", "folder"])
def test_what_cannot_be_listened_at_is_told_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / ("x" * 200 if what == "long" else "control.sock")
    if what == "folder":
        path = tmp_path / "missing" / "control.sock"

    async def main() -> None:
        if what == "file":
            path.write_text("precious")
        async with operated(path if what == "broker" else ""):
            with pytest.raises(SettingsError) as raised:
                async with operated(path):
                    pass
            assert str(path) in str(raised.value)
            assert "choose another --control-socket" in str(raised.value)
            assert "\n" not in str(raised.value)
        assert not path.exists() or path.read_text() == "precious"

    run(main())


def test_it_changes_only_what_it_is_told_to_by_post(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(path) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            assert (await ask(path, "/v1/kick?name=instance1.testdom")).status == 405
            assert len(broker.agents) == 1
            unknown = await ask(path, "/v1/kick?name=nobody.testdom", method="POST")
            assert (unknown.status, unknown.error) == (
                404,
                "no agent is registered as nobody.testdom",
            )
            wrong = await ask(path, "/v1/kick?agent=x", method="POST")
            assert (wrong.status, "there is no argument 'agent'" in wrong.error) == (400, True)
            kicked = await ask(path, "/v1/kick?name=instance1.testdom", method="POST")
            assert kicked.json == {"kicked": "instance1.testdom"}
            assert broker.agents == []
            assert (await agent.ended()).details == "ended by the operator"

    run(main())


def test_what_is_read_on_the_metrics_port_cannot_kick() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker:
            routes = Status(broker).routes()
            async with serving("127.0.0.1:0", routes, chosen=True) as address:
                for path in ("/v1/kick", "/api/kick"):
                    answered = await ask(address or "", f"{path}?name=x", method="POST")
                    assert answered.status == 404

    run(main())


def test_a_hostile_client_hurts_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with operated(path):
            silent = [await opened(path) for _ in range(200)]
            _, noisy = await opened(path)
            noisy.write(b"\x00" * 100_000)
            assert (await ask(path, "/v1/agents")).status == 200
            for _, writer in (*silent, (None, noisy)):
                writer.close()

    run(main())


# The other end


def test_what_is_wrong_with_a_socket_is_told_in_one_line(tmp_path: Path, login: Path) -> None:
    async def hangs_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    def failure(path: Path) -> str:
        with pytest.raises(ControlCallFailed) as raised:
            control_call.get(path, "agents")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    async def main() -> None:
        missing = tmp_path / "missing.sock"
        assert f"there is no control socket {missing}: start `whip proxy`" in failure(missing)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / "stale.sock"))
        assert "no broker listens at" in failure(tmp_path / "stale.sock")
        other = tmp_path / "other.sock"
        async with await asyncio.start_unix_server(hangs_up, other):
            assert "is not a broker's control socket" in await asyncio.to_thread(failure, other)

    run(main())


def test_the_one_broker_that_runs_is_found_and_of_several_one_is_to_be_chosen(
    login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "folders", lambda _=None: [login])

    async def main() -> None:
        with pytest.raises(ControlCallFailed, match="no broker of this user runs here"):
            control_call.find(None)
        async with operated(login.parent / "chosen.sock"):
            assert control_call.find("~/x") == Path("~/x").expanduser()
            async with operated(None) as one:
                assert control_call.find(None).name == f"broker-{one.control_port}.sock"
                async with operated(None):
                    with pytest.raises(ControlCallFailed, match="2 brokers run here: choose one"):
                        control_call.find(None)

    run(main())
