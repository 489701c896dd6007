"""The plugins in docs/picking.md and docs/policy.md do what is said of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from agent_views import view
from tunnel import run
from whip_core.agents import AgentView, Peer, Registration
from whip_core.caller import NOBODY, Caller, HttpRequest
from whip_core.names import AgentName, Target
from whip_core.picker_choice import PICKERS, make_picker
from whip_core.plugins import Plugins

DOCS = Path(__file__).parent.parent / "docs"
TARGET = Target("testdom", 80)


def example(page: str, having: str) -> ModuleType:
    """The one Python example of a page with that text."""
    examples = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    [code] = [code for code in examples if having in code]
    module = ModuleType("example")
    exec(compile(code, page, "exec"), vars(module))
    return module


def pick(plugin: ModuleType, candidates: Sequence[AgentView], caller: Caller) -> str:
    picked = Plugins([make_picker("random"), plugin]).pick(TARGET, candidates, caller).agent
    assert isinstance(picked, AgentView)
    return picked.name.hostname


def test_every_picker_is_in_the_table() -> None:
    page = (DOCS / "picking.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)`", page, re.MULTILINE) == [
        *("random", "round-robin", "two-choices", "least-streams", "lowest-rtt", "sticky")
    ]
    assert set(PICKERS) == set(re.findall(r"^\| `([a-z-]+)`", page, re.MULTILINE))


def test_the_tester_gets_the_oldest_agent() -> None:
    plugin = example("picking.md", "tester")
    candidates = [view("new", registered_at=2.0), view("old", registered_at=1.0)]
    assert {pick(plugin, candidates, Caller(proxy_user="tester")) for _ in range(9)} == {"old"}
    assert {pick(plugin, candidates, NOBODY) for _ in range(99)} == {"old", "new"}


def test_the_canary_gets_who_asks_for_it() -> None:
    plugin = example("picking.md", "x-canary")
    candidates = [view("stable"), view("canary", labels={"canary": "true"})]
    request = HttpRequest("GET", "http", "testdom", "/", {"x-canary": "1"})
    assert pick(plugin, candidates, Caller(request=request)) == "canary"
    assert {pick(plugin, candidates, NOBODY) for _ in range(99)} == {"stable", "canary"}
    plugins = Plugins([make_picker("random"), plugin])
    assert plugins.go_by_caller
    assert plugins.pick_by_caller(TARGET, candidates, NOBODY) is None, "any of them will do"


def test_owners_reach_what_is_theirs() -> None:
    async def main() -> None:
        plugins = Plugins([example("policy.md", "owner")])
        peer = Peer(("192.0.2.1", 50000), None)
        name = AgentName("web", "testdom")
        for labels, refused in (({"owner": "me"}, False), ({}, True)):
            said = Registration(name, (80,), labels, "i", 1, "1")
            assert (await plugins.veto_of_agent(said, peer) is not None) == refused
        agent = view("web", labels={"owner": "me"})
        assert await plugins.veto_of_dial(TARGET, agent, Caller(proxy_user="me")) is None
        reason = await plugins.veto_of_dial(TARGET, agent, NOBODY)
        assert reason == "web.testdom belongs to me"

    run(main())
