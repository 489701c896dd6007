"""The fixtures that other projects test with: they are used here as there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from whip_core import hookimpl
from whip_core.agents import AgentView
from whip_core.errors import UnknownName
from whip_core.testing import Authority
from whip_core.testing.tunnel import MitmproxyHandle, RunningAgent, Tunnel

AgentFixture = Callable[..., RunningAgent]


class First:
    """Picks by name, and keeps what it was told."""

    def __init__(self) -> None:
        self.picked: list[str] = []

    @hookimpl
    def whip_pick(self, candidates: Sequence[AgentView]) -> AgentView:
        chosen = min(candidates, key=lambda agent: agent.name.full)
        self.picked.append(chosen.name.full)
        return chosen


@pytest.fixture
def whip_plugins() -> list[object]:
    return [First()]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application."""
    if scope["type"] != "http":
        return
    body = f"hello {scope['path']}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def test_an_application_is_reached_through_an_agent_and_a_forward(
    whip_agent: AgentFixture, whip_broker: Tunnel
) -> None:
    agent = whip_agent(hello, labels={"zone": "eu"}).view
    assert (agent.name.full, agent.ports, agent.labels) == (
        "instance1.testdom",
        (80,),
        {"zone": "eu"},
    )
    with whip_broker.connect("instance1.testdom") as client:
        client.sendall(b"GET /there HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.endswith(b"hello /there")


def test_a_plugin_of_the_broker_is_asked(
    whip_agent: AgentFixture, whip_broker: Tunnel, whip_plugins: list[First]
) -> None:
    for name in ("b.testdom", "a.testdom"):
        whip_agent(hello, name)
    whip_broker.dial("testdom")
    assert whip_plugins[0].picked == ["a.testdom"]


def test_mitmproxy_records_what_went_through_it(
    whip_agent: AgentFixture, whip_mitmproxy: MitmproxyHandle
) -> None:
    whip_agent(hello)
    answer = whip_mitmproxy.get("http://instance1.testdom/page", headers={"x-test": "1"})
    assert (answer.status, answer.body) == (200, b"hello /page")
    assert whip_mitmproxy.get("http://instance2.testdom/").status == 502
    one, two = whip_mitmproxy.wait_for_flows(2)
    assert (one.request.path, one.request.headers["x-test"]) == ("/page", "1")
    assert two.error is not None or two.response.status_code == 502


def test_an_agent_can_be_stopped(whip_agent: AgentFixture, whip_broker: Tunnel) -> None:
    agent = whip_agent(hello)
    agent.stop()
    whip_broker.wait_until(lambda: not whip_broker.agents)
    with pytest.raises(LookupError, match=r"instance1\.testdom is not registered"):
        _ = agent.view


def test_errors_of_a_dial_are_the_dials_own(whip_broker: Tunnel) -> None:
    with pytest.raises(UnknownName, match="nobody"):
        whip_broker.dial("nobody.testdom")


def test_the_ca_is_one_for_the_whole_run(whip_ca: Authority, whip_broker: Tunnel) -> None:
    assert whip_broker.authority is whip_ca


def test_a_test_run_that_uses_no_fixture_loads_next_to_nothing() -> None:
    """pytest imports the plugin in every project of the environment."""
    program = (
        "import sys, whip_core.pytest_plugin\n"
        "print(*sorted(name for name in sys.modules if name.startswith('whip_core')))\n"
        "print(*({'grpc', 'mitmproxy', 'click', 'uvicorn', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "whip_core whip_core.errors whip_core.pytest_plugin whip_core.when_asked",
        "",
    ]


def test_the_names_of_the_package_are_there_when_asked_for_and_no_others() -> None:
    import whip_core

    for name in whip_core.__all__:
        assert getattr(whip_core, name) is not None
    with pytest.raises(AttributeError, match="module 'whip_core' has no attribute 'Bloker'"):
        _ = whip_core.Bloker  # type: ignore[attr-defined]


def test_errors_and_fakes_are_there_without_an_import_of_their_own() -> None:
    program = (
        "import whip_core\n"
        "assert whip_core.errors.UnknownName is whip_core.UnknownName\n"
        "assert whip_core.testing.memory_pair\n"
        "assert set(whip_core.errors.__all__) < set(whip_core.__all__)\n"
        "from whip_core import *\n"
        "assert DialError is whip_core.DialError and Broker"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_fakes_are_all_there_and_grpc_comes_only_with_those_that_speak_it() -> None:
    program = (
        "import sys\n"
        "from whip_core.testing import memory_pair, Authority\n"
        "assert 'grpc' not in sys.modules\n"
        "from whip_core.testing import ScriptedAgent, ScriptedBroker\n"
        "import whip_core.testing\n"
        "print(*(getattr(whip_core.testing, name).__name__ for name in whip_core.testing.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [
        *("Authority", "MemoryTransport", "ScriptedAgent", "ScriptedBroker", "memory_pair")
    ], done.stderr
