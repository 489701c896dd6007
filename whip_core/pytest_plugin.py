"""Fixtures for the tests of services, and of plugins: a whole tunnel in the test's process.

pytest finds them by itself where whip-tunnel is installed. All can be used from plain test
functions and from coroutine tests alike: what they return runs on an event loop in another
thread.

    def test_it(whip_agent, whip_broker):
        whip_agent(my_asgi_application)
        host, port = whip_broker.forward("instance1.testdom", 80)

`whip_plugins` is there to be overridden: it gives the broker's plugins.
"""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points

import pytest

# Nothing of whip is imported before a fixture is used: this is imported in every test run.
if typing.TYPE_CHECKING:
    from whip_core.testing.ca import Authority
    from whip_core.testing.tunnel import MitmproxyHandle, Tunnel

GROUP = "whip.testing"
"""Entry points for what the agent and the addon bring: the core knows neither."""


def _brought(name: str) -> typing.Any:
    [found] = [
        point
        for point in entry_points(group=GROUP, name=name)
        if point.dist is not None and point.dist.name == "whip-tunnel"
    ]
    return found.load()


@pytest.fixture(scope="session")
def whip_ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA (`whip_core.testing.Authority`): `server_files()`, `client_files("*.testdom")`."""
    from whip_core.testing.ca import Authority

    return Authority(tmp_path_factory.mktemp("whip-ca"))


@pytest.fixture
def whip_plugins() -> list[object]:
    """The plugins of `whip_broker`: none. Override it in a test module to have some."""
    return []


@pytest.fixture
def whip_plugin_settings() -> dict[str, str]:
    """Their settings, as {"plugin.key": "value"}: none. Override it to have some."""
    return {}


@pytest.fixture
def whip_broker(
    whip_ca: Authority, whip_plugins: list[object], whip_plugin_settings: dict[str, str]
) -> Iterator[Tunnel]:
    """A broker over mutual TLS, on free ports of loopback (`whip_core.testing.tunnel.Tunnel`)."""
    from whip_core.testing.tunnel import running

    with running(whip_ca, whip_plugins, whip_plugin_settings) as tunnel:
        yield tunnel


@pytest.fixture
def whip_agent(whip_broker: Tunnel) -> Callable[..., typing.Any]:
    """Start an agent: `whip_agent(service, name="instance1.testdom", labels=…, plugins=…)`.

    The service is an ASGI application or a port of this machine, and is exposed as port 80;
    `ports` exposes others, as in `whip client --ports`. It is registered when this returns,
    unless it has `wait=False`. What it gives has a `view`, the broker's, and can be stopped.
    """
    registered = _brought("agent")

    def start(service: typing.Any = None, name: str = "instance1.testdom", **changes: typing.Any):  # type: ignore[no-untyped-def]
        return whip_broker.start_agent(registered, service, name, **changes)

    return start


@pytest.fixture
def whip_mitmproxy(whip_broker: Tunnel) -> MitmproxyHandle:
    """A mitmproxy in front of `whip_broker`: its `url` is the proxy's, `flows` what it has seen."""
    pytest.importorskip("mitmproxy", reason="needs whip-tunnel[proxy]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mitmproxy's libraries, about each other
        recording = _brought("mitmproxy")
    return whip_broker.start_mitmproxy(recording)
