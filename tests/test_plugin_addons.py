"""Addons for mitmproxy that whip's plugins bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mitmproxy import ctx
from mitmproxy.addonmanager import Loader
from mitmproxy.http import HTTPFlow

from mitm import FakeBroker, answering, curl, proxy, service
from test_addon import PLAIN, mitmdump
from tunnel import run
from whip_addon.commands import ADDON
from whip_addon.plugin_addons import PluginAddons
from whip_core import Broker, BrokerSettings, hookimpl
from whip_core.errors import SettingsError


class Stamp:
    """An addon with everything that one may have: an option, a life, a hook, a name."""

    name = "stamp"

    def __init__(self) -> None:
        self.told: list[str] = []

    def load(self, loader: Loader) -> None:
        loader.add_option("stamp_text", str, "stamped", "What to stamp on an answer.")
        self.told.append("load")

    def configure(self, updated: set[str]) -> None:
        if "stamp_text" in updated:
            self.told.append("configure")

    def running(self) -> None:
        self.told.append("running")

    def response(self, flow: HTTPFlow) -> None:
        assert flow.response is not None
        flow.response.headers["x-stamp"] = ctx.options.stamp_text

    def done(self) -> None:
        self.told.append("done")


def test_it_lives_and_sees_flows_as_any_addon_does() -> None:
    stamp = Stamp()

    async def main() -> None:
        async with (
            service(answering(b"hello")) as port,
            proxy(
                FakeBroker({"a.testdom": port}, addons=[("mine", stamp)]), stamp_text="by me"
            ) as p,
        ):
            assert stamp.told == ["load", "configure", "running"]
            answer = await curl("--include", "--proxy", p.url, "http://a.testdom/")
            assert "x-stamp: by me" in answer.output.lower()
            whip = p.master.addons.get("whip")
            p.master.addons.remove(whip)
            assert stamp.told[3:] == ["done"]

    run(main())


def test_one_that_comes_when_mitmproxy_runs_already_is_told_so_once() -> None:
    stamp = Stamp()

    async def main() -> None:
        async with proxy(FakeBroker()) as p:
            brought = p.master.addons.get("whip.plugins")
            assert isinstance(brought, PluginAddons)
            await brought.add([("mine", stamp)])
            assert stamp.told == ["load", "configure", "running"]

    run(main())


def test_plugins_give_them_in_a_list_or_are_named() -> None:
    class Brings:
        def __init__(self, addons: Any) -> None:
            self.addons = addons

        @hookimpl
        def whip_mitmproxy_addons(self) -> Any:
            return self.addons

    def brought(*addons: Any) -> list[tuple[str, object]]:
        broker = Broker(BrokerSettings(), plugins=[Brings(each) for each in addons])
        return broker.mitmproxy_addons()

    stamp = Stamp()
    assert brought(None, [], [stamp]) == [("Brings", stamp)]
    with pytest.raises(SettingsError, match=r"plugin Brings: whip_mitmproxy_addons gave <.*Stamp"):
        brought(stamp)


PLUGIN = """
from whip_core import hookimpl

class Wrong:
    name = "{name}"
    def load(self, loader):
        {load}

@hookimpl
def whip_mitmproxy_addons():
    return [Wrong()]
"""


@pytest.mark.parametrize(
    ("name", "load", "says"),
    [
        ("view_less", "1 / 0", "plugin wrong: its mitmproxy addon Wrong: division by zero"),
        ("whip", "pass", "plugin wrong: its mitmproxy addon Wrong: An addon called 'whip' already"),
    ],
)
def test_one_that_mitmproxy_cannot_have_ends_it_with_one_line(
    name: str, load: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.py").write_text(PLUGIN.format(name=name, load=load))
    finished = mitmdump(
        tmp_path,
        *("-s", str(ADDON), *PLAIN, "--set", "whip_plugins=wrong.py"),
        *("--set", "whip_tcp_listen_port=0", "--set", "whip_grpc_listen_port=0"),
    )
    assert finished.returncode == 1
    [line] = [line for line in finished.stdout.splitlines() if "whip:" in line]
    assert says in line
    assert "Traceback" not in finished.stdout + finished.stderr
