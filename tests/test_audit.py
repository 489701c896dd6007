"""The audit log: what is in it, and that no disk stops the traffic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from processes import free_ports, started
from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    exchange,
    registration,
    run,
    running,
    saying,
    scripted,
    service,
    until,
)
from whip_core import Broker, Caller, HttpRequest, audit, control
from whip_core.agents import Refusal
from whip_core.audit import REFUSALS, AuditLog
from whip_core.errors import SettingsError, UnknownName
from whip_core.testing.agent import ControlStreamEnded

EVE = Caller(
    address=("192.0.2.1", 1000),
    proxy_user="eve",
    request=HttpRequest("GET", "http", "instance1.testdom", "/?token=secret"),
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusal(number: int = 0) -> Refusal:
    return Refusal("connection", "handshake", ("192.0.2.1", number), "no TLS handshake")


def test_registrations_refusals_takeovers_and_dials_are_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"

    async def main() -> None:
        settings = broker_settings(tls=True, audit_log=path, probe_timeout=0.05)
        watch = Watch()
        async with Broker(settings, plugins=[watch]) as broker:
            async with (
                service(saying(b"hello")) as port,
                running(
                    agent_settings(broker.control_port, ports=f"80={port}", tls=client_files())
                ) as agent,
            ):
                await agent.wait_registered()
                streams = await broker.open_connection("instance1.testdom", 80, caller=EVE)
                assert await exchange(streams, b"hi") == b"hello"
                with pytest.raises(UnknownName):
                    await broker.open_connection("nobody.testdom", 80)
                await watch.until(lambda: bool(watch.closed))
            files = client_files("*.other")
            async with scripted(broker, registration("stolen"), tls=files) as thief:
                with pytest.raises(ControlStreamEnded):
                    await thief.expect(control.Registered)
            deaf = scripted(broker, registration("dead"), tls=client_files(), answers_pings=False)
            async with deaf as dead:
                await dead.expect(control.Registered)
                heir = registration("dead", instance_id="another")
                async with scripted(broker, heir, tls=client_files()) as heir_of_it:
                    await heir_of_it.expect(control.Registered)

    run(main())
    found = lines(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "token" not in path.read_text()
    assert all(line["time"].endswith("+00:00") for line in found)
    by_event: dict[str, list[dict[str, Any]]] = {}
    for line in found:
        by_event.setdefault(line["event"], []).append(line)
    [joined, *_] = by_event["registered"]
    assert (joined["agent"], joined["certificate"]) == ("instance1.testdom", ["*.testdom"])
    who = {"address": "192.0.2.1:1000", "user": "eve", "method": "GET", "host": "instance1.testdom"}
    [opened] = by_event["opened"]
    done, failed = by_event["dial"]
    assert done["dial"] == opened["dial"]
    assert (done["target"], done["agent"], done["port"]) == (
        "instance1.testdom:80",
        "instance1.testdom",
        80,
    )
    assert done["caller"] == opened["caller"] == who
    assert (done["outcome"], done["bytes_to_agent"], done["bytes_from_agent"]) == ("end", 2, 5)
    assert (failed["outcome"], failed["target"]) == ("unknown-name", "nobody.testdom:80")
    [refused] = [line for line in by_event["refused"] if line["what"] == "agent"]
    assert refused["reason"] == "not-authorized"
    assert (refused["agent"], refused["address"][:10]) == ("stolen.testdom", "127.0.0.1:")
    [taken] = by_event["taken-over"]
    assert taken["agent"] == "dead.testdom"
    assert {line["reason"] for line in by_event["left"]} >= {"replaced by a newer session"}


def test_a_full_disk_stops_nothing_and_is_told_of_seldom(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        settings = broker_settings(audit_log=Path("/dev/full"))
        async with (
            service(saying(b"hello")) as port,
            Broker(settings) as broker,
            running(agent_settings(broker.control_port, ports=f"80={port}")) as agent,
        ):
            await agent.wait_registered()
            for _ in range(50):
                streams = await broker.open_connection("instance1.testdom", 80)
                assert await exchange(streams, b"") == b"hello"

    run(main())
    told = [line for line in caplog.messages if "cannot be written" in line]
    assert 1 <= len(told) <= 20
    assert "No space left" in told[0]


def test_a_file_that_cannot_be_opened_again_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "there" / "audit.log"
    path.parent.mkdir()
    log = AuditLog(path)
    log.start()
    moved = path.parent.rename(tmp_path / "moved")
    log.reopen()
    log.whip_refused(refusal(1))
    log.close()
    [line] = (moved / "audit.log").read_text().splitlines()
    assert json.loads(line)["event"] == "refused"


def test_lines_that_could_not_be_written_are_said_to_be_missing(tmp_path: Path) -> None:
    """A disk that is full for a while; the last line before that is torn in two."""
    path = tmp_path / "audit.log"
    results = iter([None, 10, OSError(28, "full"), None, None])

    def write(file: int, data: bytes) -> int:
        result = next(results)
        if isinstance(result, OSError):
            raise result
        return os.write(file, data if result is None else data[:result])

    log = AuditLog(path, write=write)
    log.start()
    for number in range(5):
        log.whip_refused(refusal(number))
    log.close()
    first, torn, missing, fourth, fifth = path.read_text().splitlines()
    assert torn == '{"time":"2'[:10]
    assert json.loads(missing) == {"event": "missing", "lines": 2}
    assert [json.loads(line)["address"][-1] for line in (first, fourth, fifth)] == ["0", "3", "4"]


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "END_TIMEOUT", 0.05)
    monkeypatch.setattr(audit, "MAX_UNWRITTEN", 10)
    released = threading.Event()
    log = AuditLog(tmp_path / "audit.log", write=lambda *_: released.wait() and 0)
    log.start()
    for number in range(50):
        log.whip_refused(refusal(number))
    log.close()  # comes to an end, although the disk never does
    assert log._lost > 30
    released.set()


def test_strangers_cannot_fill_the_disk(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "audit.log"
    log = AuditLog(path, clock=lambda: now)
    log.start()
    for number in range(REFUSALS + 50):
        log.whip_refused(refusal(number))
    now = audit.WINDOW
    log.whip_refused(refusal())
    log.close()
    found = lines(path)
    assert len(found) == REFUSALS + 2
    assert found[-2]["left_out"] == 50


def test_a_path_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        settings = broker_settings(audit_log=tmp_path / "nowhere" / "audit.log")
        with pytest.raises(SettingsError, match=r"--audit-log .*nowhere.* cannot be written"):
            async with Broker(settings):
                pass

    run(main())


@pytest.mark.parametrize("command", ["proxy", "forward"])
def test_sighup_begins_a_new_file(tmp_path: Path, command: str) -> None:
    path, moved = tmp_path / "audit.log", tmp_path / "audit.log.1"
    listen, control_port, reverse_port = free_ports(3)
    arguments = (
        [f"--proxy-listen-port={listen}"] if command == "proxy" else [f"{listen}:a.testdom:80"]
    )

    async def dial() -> None:
        """Nobody is registered, so it fails, which is an event."""
        with contextlib.suppress(ConnectionResetError):  # a forward's, perhaps at once
            reader, writer = await asyncio.open_connection("127.0.0.1", listen)
            writer.write(b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n")
            await reader.read(1)
            writer.close()

    async def until_written(to: Path) -> None:
        await until(lambda: to.exists() and to.read_text())

    async def main() -> None:
        async with started(
            "whip",
            command,
            *arguments,
            *("--whip-external-tcp-address=localhost", "--tls=false", "--metrics-listen="),
            *(f"--whip-grpc-listen-port={control_port}", f"--whip-tcp-listen-port={reverse_port}"),
            *(f"--audit-log={path}", "--domain=testdom"),
        ) as process:
            await process.says("proxy listening" if command == "proxy" else "forwarding")
            await dial()
            await until_written(path)
            path.rename(moved)
            process.signal(signal.SIGHUP)
            await until(path.exists)
            await dial()
            await until_written(path)

    run(main())
    for each in (path, moved):
        assert {line["event"] for line in lines(each)} == {"dial"}
