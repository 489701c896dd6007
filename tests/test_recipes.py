"""The recipes: each is installed by pip, as a user would, and used as installed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whip_core import Caller, HttpRequest
from whip_core.testing.tunnel import RunningAgent, Tunnel

RECIPES = Path(__file__).parent.parent / "recipes"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all recipes in it, installed without a network."""
    folder = tmp_path_factory.mktemp("recipes")
    target = folder / "installed"
    sources = [  # copies, as a build leaves files beside what it builds
        shutil.copytree(path.parent, folder / path.parent.name)
        for path in RECIPES.glob("*/pyproject.toml")
    ]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def whip(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from whip_core.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )


def test_they_are_found_by_their_entry_points_and_listed(installed: Path) -> None:
    done = whip(installed, "plugins", "--json", "--plugin-set=canary.header=x-test")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert found["canary"]["origin"] == {
        "kind": "entry point",
        "place": "whip_canary:plugin",
        "distribution": "whip-canary",
        "version": "1.0",
    }
    assert found["canary"]["hooks"] == [
        *("whip_configure", "whip_metrics", "whip_pick", "whip_settings"),
    ]
    assert found["canary"]["settings"][0]["value"] == "x-test"
    assert found["opentelemetry"]["origin"]["distribution"] == "whip-opentelemetry"


def test_one_can_be_left_out(installed: Path) -> None:
    done = whip(installed, "plugins", "--no-plugin=canary")
    assert done.returncode == 0, done.stderr
    assert "whip-canary" not in done.stdout
    assert "whip-opentelemetry 1.0" in done.stdout


def test_its_settings_are_checked_as_our_own_are(installed: Path) -> None:
    done = whip(installed, "plugins", "--plugin-set=canary.header=X-Test")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert "plugin canary: header 'X-Test' is to be written in lower case" in line


def test_it_brings_a_command(installed: Path) -> None:
    assert "canary" in whip(installed, "--help").stdout
    done = whip(installed, "canary", "http://testdom/")
    assert done.stdout == "curl --proxy localhost:8080 --header 'x-canary: 1' http://testdom/\n"


# What they do


@pytest.fixture
def exporter() -> Any:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    return memory.InMemorySpanExporter()


@pytest.fixture
def whip_plugins(
    installed: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[object]:
    monkeypatch.syspath_prepend(str(installed))
    plugins = [importlib.import_module("whip_canary").Canary()]
    if "exporter" in request.fixturenames:
        trace = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        provider = trace.TracerProvider()
        provider.add_span_processor(export.SimpleSpanProcessor(request.getfixturevalue("exporter")))
        plugins.append(importlib.import_module("whip_opentelemetry").OpenTelemetry(provider))
    return plugins


def _asking(**headers: str) -> Caller:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Caller(request=HttpRequest("GET", "http", "testdom", "/", named))


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Never asked: dials are all that counts here."""


def test_marked_requests_go_to_canaries_and_others_do_not(
    whip_broker: Tunnel, whip_agent: Callable[..., RunningAgent]
) -> None:
    whip_agent(hello, "a.testdom")
    whip_agent(hello, "b.testdom", labels={"canary": "true"})
    for _ in range(3):
        whip_broker.dial("testdom", caller=_asking(x_canary="1"))
    for _ in range(4):
        whip_broker.dial("testdom", caller=_asking())
    registry = whip_broker.broker.metrics.registry
    for marked, count in (("true", 3), ("false", 4)):
        assert registry.get_sample_value("whip_canary_picks_total", {"canary": marked}) == count


def test_dials_and_streams_are_spans_in_the_trace_of_the_request(
    exporter: Any, whip_broker: Tunnel, whip_agent: Callable[..., RunningAgent]
) -> None:
    whip_agent(hello)
    whip_broker.dial("testdom", caller=_asking(traceparent=f"00-{TRACE}-{PARENT}-01"))
    whip_broker.wait_until(lambda: len(exporter.get_finished_spans()) == 2)
    dial, stream = exporter.get_finished_spans()
    assert (dial.name, stream.name) == ("whip dial", "whip stream")
    for span in (dial, stream):
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == PARENT
        assert span.attributes["whip.agent"] == "instance1.testdom"
        assert span.end_time > span.start_time
    assert dial.attributes["whip.dial_id"] == stream.attributes["whip.dial_id"]
    assert dial.status.is_ok


def test_a_dial_that_fails_is_an_error_in_a_trace_of_its_own(
    exporter: Any, whip_broker: Tunnel
) -> None:
    for caller in (Caller(), _asking(traceparent="nonsense")):
        with pytest.raises(ConnectionRefusedError):
            whip_broker.dial("nobody.testdom", caller=caller)
    for span in exporter.get_finished_spans():
        assert span.parent is None
        assert span.attributes["error.type"] == "unknown-name"
        assert not span.status.is_ok
    assert len(exporter.get_finished_spans()) == 2
