"""Plugins of an agent: they may refuse or redirect a dial to an exposed port, and fail closed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processes import started
from tunnel import (
    agent_settings,
    broker_settings,
    exchange,
    run,
    running,
    saying,
    service,
)
from whip_core import Broker, control, hookimpl
from whip_core.control_wire import decode_agent_message
from whip_core.errors import ServiceRefused
from whip_core.local_request import LocalRequest
from whip_core.testing.broker import ScriptedBroker, read_old_preamble

Answer = Callable[[LocalRequest], Any]


class Local:
    """Answers as the test says, and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[LocalRequest] = []

    @hookimpl
    def whip_open_local(self, request: LocalRequest) -> Any:
        self.asked.append(request)
        return self.answer(request)


async def dialled(plugin: object, ports: str) -> bytes:
    """What a service says to a dial of port 80, through an agent with that plugin."""
    async with (
        Broker(broker_settings()) as broker,
        running(
            agent_settings(broker.control_port, ports=ports), plugins=[plugin] if plugin else []
        ) as agent,
    ):
        await agent.wait_registered()
        return await exchange(await broker.open_connection("instance1.testdom", 80), b"")


def test_when_no_plugin_answers_the_exposed_service_is_opened() -> None:
    plugin = Local(lambda request: None)

    async def main() -> None:
        async with service(saying(b"exposed")) as port:
            assert await dialled(plugin, f"80={port}") == b"exposed"
            [request] = plugin.asked
            assert (request.port, request.service) == (80, f"127.0.0.1:{port}")
            assert len(bytes.fromhex(request.dial_id)) == 16
            assert request.broker_id

    run(main())


def test_a_plugin_redirects_to_another_port_and_to_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"

    async def says_socket(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"socket")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_unix_server(says_socket, path)
        async with service(saying(b"exposed")) as port, service(saying(b"other")) as other:
            redirected = Local(lambda request: request.redirect(str(other)))
            assert await dialled(redirected, f"80={port}") == b"other"
            redirected = Local(lambda request: request.redirect(f"unix:{path}"))
            assert await dialled(redirected, f"80={port}") == b"socket"
        server.close()

    run(main())


def _fails(request: LocalRequest) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda request: request.refuse("closed for today"), "plugin Local refused: closed for"),
        (_fails, r"plugin Local: whip_open_local failed: ZeroDivisionError\(\)"),
        (lambda request: "5051", "plugin Local: whip_open_local gave '5051', and not what"),
        (
            lambda request: request.redirect("nowhere:http"),
            "plugin Local: whip_open_local: 'nowhere:http' is not a service",
        ),
    ],
)
def test_a_refusal_or_a_failure_reaches_the_caller_with_the_plugins_name(
    answer: Answer, says: str
) -> None:
    async def main() -> None:
        async with service(saying(b"secret")) as port:
            with pytest.raises(ServiceRefused, match=says):
                await dialled(Local(answer), f"80={port}")

    run(main(), logs_errors=True)


def test_an_old_broker_is_answered_in_its_own_way() -> None:
    plugin = Local(lambda request: request.refuse("no") if request.dial_id == "one" else None)

    async def main() -> None:
        async with (
            service(saying(b"hello")) as port,
            ScriptedBroker() as broker,
            running(
                agent_settings(broker.control_port, ports=f"80={port}"), plugins=[plugin]
            ) as agent,
        ):
            stream = await broker.agent()
            await stream.receive()
            await stream.send(control.Ping(1, 1))
            await agent.wait_registered()
            await stream.receive()
            await stream.send(control.Connect("one", "127.0.0.1", broker.reverse_port, 80))
            refused = decode_agent_message(await stream.receive() or b"")
            assert refused == control.ConnectFailed("one", "the agent's plugin Local refused: no")
            await stream.send(control.Connect("two", "127.0.0.1", broker.reverse_port, 80))
            reader, writer = await broker.reverse_connection()
            assert await read_old_preamble(reader) == "two"
            assert await reader.read() == b"hello"
            writer.close()
        assert [request.broker_id for request in plugin.asked] == [None, None]

    run(main())


PLUGIN = """
from dataclasses import dataclass
from whip_core import hookimpl

@dataclass
class Settings:
    reason: str = "no"

chosen = None

@hookimpl
def whip_settings():
    return Settings

@hookimpl
def whip_configure(settings):
    global chosen
    chosen = settings
    if settings.reason == "fail":
        raise OSError("no such reason")

@hookimpl
def whip_open_local(request):
    return request.refuse(chosen.reason)
"""
NAMED = ("--tls=false", "--metrics-listen=", "--hostname=a", "--domain=b", "--ports=80")


def test_the_command_takes_a_plugin_and_its_settings(tmp_path: Path) -> None:
    (tmp_path / "closed.py").write_text(PLUGIN)

    async def main() -> None:
        async with (
            Broker(broker_settings()) as broker,
            started(
                *("whip", "client", *NAMED, "--plugin=closed.py"),
                *("--plugin-set=closed.reason=holidays", f"localhost:{broker.control_port}"),
                cwd=tmp_path,
            ),
        ):
            with pytest.raises(ServiceRefused, match="plugin closed refused: holidays"):
                await broker.open_connection("a.b", 80, wait=20)

    run(main())


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--plugin=nowhere.py",), 2, "cannot load plugin nowhere.py: "),
        (("--no-plugin=closed",), 2, "no plugin closed to leave out"),
        (("--plugin-set=closed.reason=x",), 2, "closed.reason: there is no plugin closed"),
        (("--plugin=closed.py", "--plugin-set=closed.x=y"), 2, "plugin closed has no setting x"),
        (("--plugin=for_brokers.py",), 2, "plugin for_brokers: an agent asks none of whip_pick"),
        (
            ("--plugin=closed.py", "--plugin-set=closed.reason=fail"),
            1,
            "plugin closed: whip_configure failed: OSError('no such reason')",
        ),
    ],
)
def test_what_is_wrong_with_one_is_one_line(
    arguments: tuple[str, ...], status: int, says: str, tmp_path: Path
) -> None:
    (tmp_path / "closed.py").write_text(PLUGIN)
    (tmp_path / "for_brokers.py").write_text(
        "from whip_core import hookimpl\n@hookimpl\ndef whip_pick(): ...\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from whip_core.cli import main; main()"),
            *("client", *NAMED, *arguments, "localhost:1"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == status, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert says in line
    assert "Traceback" not in done.stderr
