"""Who may reach what by a policy, and which agents may register."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import pytest

from agent_views import view
from mitm import FakeBroker, answering, curl
from mitm import proxy as mitmproxy
from mitm import service as http_service
from tunnel import (
    Log,
    agent_settings,
    broker_settings,
    client_files,
    registration,
    run,
    running,
    scripted,
)
from whip_addon.lifecycle import WhipAddon
from whip_core import Broker, BrokerSettings, Caller, control, hookimpl
from whip_core.agents import AgentView, Peer, Registration
from whip_core.authorization import PolicyRules
from whip_core.errors import NotAuthorized
from whip_core.names import AgentName, Target
from whip_core.policy_file import parse_policy
from whip_core.testing.agent import ControlStreamEnded

MONDAY_NOON = datetime(2026, 11, 23, 12, 0)
DOCS = Path(__file__).parent.parent / "docs" / "policy.md"
ANYONE = '[[caller]]\nwho = "*"\n'


def dial(
    rules: str,
    *,
    user: str | None = None,
    certificate: str = "",
    source: str = "192.0.2.7",
    target: str = "testdom",
    port: int = 80,
    agent: AgentView | None = None,
    now: datetime = MONDAY_NOON,
) -> str | None:
    """The reason against a dial, or None."""
    caller = Caller(
        address=(source, 40000),
        proxy_user=user,
        certificate_names=(certificate,) if certificate else (),
    )
    asked = PolicyRules(parse_policy(rules, "policy.toml"), lambda: now)
    return asked.whip_authorize_dial(Target(target, port), agent or view("web"), caller)


def register(
    rules: str,
    *,
    source: str = "192.0.2.7",
    ports: tuple[int, ...] = (80,),
    labels: Mapping[str, str] = MappingProxyType({}),
    name: str = "web",
    certificate: str = "*.testdom",
    now: datetime = MONDAY_NOON,
) -> str | None:
    asked = PolicyRules(parse_policy(ANYONE + rules, "policy.toml"), lambda: now)
    said = Registration(AgentName.parse(name, "testdom"), ports, labels, "i", 1, "1")
    return asked.whip_authorize_agent(said, Peer((source, 40000), (certificate,)))


def test_where_no_rule_fits_the_answer_is_no_and_says_who_and_what() -> None:
    rules = '[[caller]]\nusers = "alice"\n'
    assert dial(rules, user="alice") is None
    assert dial(rules, user="eve") == (
        "no rule of the policy lets user eve reach web.testdom for testdom:80"
    )
    assert "lets 192.0.2.7 reach" in (dial(rules) or "")
    assert "lets ci.example reach" in (dial(rules, certificate="ci.example") or "")


def test_the_first_rule_that_fits_decides() -> None:
    rules = """
        [[caller]]
        rule = "never eve"
        allow = false
        users = "eve"

        [[caller]]
        who = "*"
    """
    assert dial(rules, user="alice") is None
    assert dial(rules, user="eve") == (
        "the policy's rule 'never eve' does not let user eve reach web.testdom for testdom:80"
    )


@pytest.mark.parametrize(
    ("condition", "fits", "does_not"),
    [
        ('users = "alice"', [{"user": "alice"}], [{"user": "Alice"}, {"user": "eve"}, {}]),
        ('users = ["a*", "bob"]', [{"user": "ann"}, {"user": "bob"}], [{"user": "bobby"}, {}]),
        (
            'certificates = "*.CI.example"',
            [{"certificate": "one.ci.example"}],
            [{"certificate": "ci.example"}, {"user": "one.ci.example"}, {}],
        ),
        (
            'networks = ["10.0.0.0/8", "2001:db8::/32"]',
            [{"source": "10.1.2.3"}, {"source": "::ffff:10.1.2.3"}, {"source": "2001:db8::1"}],
            [{"source": "11.0.0.1"}, {"source": "::1"}, {"source": ""}],
        ),
        ('users = "a"\nnetworks = "10.0.0.0/8"', [{"user": "a", "source": "10.0.0.1"}],
         [{"user": "a", "source": "11.0.0.1"}, {"user": "b", "source": "10.0.0.1"}]),
    ],
)  # fmt: skip
def test_who(condition: str, fits: list[dict[str, str]], does_not: list[dict[str, str]]) -> None:
    rules = f"[[caller]]\n{condition}\n"
    assert [dial(rules, **given) for given in fits] == [None] * len(fits)  # type: ignore[arg-type]
    assert all(dial(rules, **given) for given in does_not)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "fits", "does_not"),
    [
        ('names = "testdom"', ["web"], []),
        ('names = "WEB.testdom."', ["web"], ["db"]),
        ('names = ["w*.testdom", "db1.testdom"]', ["web", "db1"], ["db2"]),
        ('names = "otherdom"', [], ["web"]),
        ('names = "web"', [], ["web"]),
    ],
)
def test_names_are_the_agents_whatever_was_asked_for(
    condition: str, fits: list[str], does_not: list[str]
) -> None:
    rules = f"{ANYONE}{condition}\n"
    for asked in ("testdom", "web.testdom", "alias"):
        assert [dial(rules, target=asked, agent=view(name)) for name in fits] == [None] * len(fits)
        assert all(dial(rules, target=asked, agent=view(name)) for name in does_not)


def test_the_port_is_the_one_that_would_be_reached() -> None:
    rules = f'{ANYONE}ports = [80, "8000-8100"]\n'
    assert dial(rules, port=8050, agent=view(ports=(22, 8050))) is None
    assert dial(rules, port=8101, agent=view(ports=(22, 8101))) is not None
    only_ssh = view(ports=(22,))
    assert dial(rules, port=80, agent=only_ssh), "80 would come to its only port, 22"
    assert dial(f"{ANYONE}ports = 22\n", port=80, agent=only_ssh) is None


def test_labels_are_all_to_be_there() -> None:
    rules = f'{ANYONE}labels = {{ env = "dev*", zone = "eu" }}\n'
    assert dial(rules, agent=view(labels={"env": "dev2", "zone": "eu", "x": "y"})) is None
    assert dial(rules, agent=view(labels={"env": "prod", "zone": "eu"}))
    assert dial(rules, agent=view(labels={"env": "dev"}))


@pytest.mark.parametrize(
    ("condition", "now", "fits"),
    [
        ('hours = "08:00-18:00"', datetime(2026, 11, 23, 8, 0), True),
        ('hours = "08:00-18:00"', datetime(2026, 11, 23, 17, 59, 59), True),
        ('hours = "08:00-18:00"', datetime(2026, 11, 23, 18, 0), False),
        ('hours = "22:00-06:00"', datetime(2026, 11, 23, 23, 0), True),
        ('hours = "22:00-06:00"', datetime(2026, 11, 23, 5, 0), True),
        ('hours = "22:00-06:00"', datetime(2026, 11, 23, 12, 0), False),
        ('hours = ["08:00-09:00", "11:00-24:00"]', datetime(2026, 11, 23, 23, 59), True),
        ('days = ["Mon", "tue"]', datetime(2026, 11, 23, 12, 0), True),
        ('days = ["mon", "tue"]', datetime(2026, 11, 22, 12, 0), False),
    ],
)
def test_the_time_of_day_and_the_day_of_the_week(condition: str, now: datetime, fits: bool) -> None:
    assert (dial(f"{ANYONE}{condition}\n", now=now) is None) == fits
    rules = f'[[agent]]\nwho = "*"\n{condition}\n'
    assert (register(rules, now=now) is None) == fits


def test_without_a_rule_for_agents_they_are_left_to_their_certificates() -> None:
    assert register("") is None


def test_rules_for_agents() -> None:
    rules = """
        [[agent]]
        networks = "192.0.2.0/24"
        certificates = "*.testdom"
        names = "web*.testdom"
        labels = { zone = "eu" }
        ports = [80, 443]
    """
    eu = {"zone": "eu"}
    assert register(rules, labels=eu) is None
    assert register(rules, labels=eu, ports=(80, 443)) is None
    for changes in (
        {"source": "198.51.100.1"},
        {"ports": (80, 22)},
        {"labels": {"zone": "us"}},
        {"name": "db"},
        {"certificate": "web.otherdom"},
    ):
        reason = register(rules, **{"labels": eu, **changes})  # type: ignore[arg-type]
        assert reason is not None
        assert reason.startswith("no rule of the policy lets it register from ")


def decisions(lines: list[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines if line.startswith('{"policy"')]


def test_every_decision_is_a_line_of_json() -> None:
    with Log() as log:
        dial('[[caller]]\nrule = "us"\nusers = "alice"\n', user="alice")
        dial('[[caller]]\nusers = "alice"\n', user='e"v\ne')
        register('[[agent]]\nwho = "*"\n', labels={"zone": "eu"})
    assert all("\n" not in line for line in log.lines)
    told = {"kind": "dial", "certificate_names": [], "source": "192.0.2.7", "target": "testdom:80"}
    told |= {"agent": "web.testdom", "request_id": None}  # type: ignore[dict-item]
    assert decisions(log.lines) == [
        {"policy": "allow", "rule": "us", "user": "alice", **told},
        {"policy": "deny", "rule": None, "user": 'e"v\ne', **told},
        {
            "policy": "allow",
            "rule": "[[agent]] 1",
            "kind": "registration",
            "certificate_names": ["*.testdom"],
            "source": "192.0.2.7",
            "agent": "web.testdom",
            "ports": [80],
            "labels": {"zone": "eu"},
        },
    ]


@pytest.mark.parametrize("text", ["", "[[agent]]\nwho = '*'\n"])
def test_a_policy_without_callers_lets_nobody_through_and_the_broker_says_so(
    text: str, tmp_path: Path
) -> None:
    assert dial(text, user="alice") is not None
    path = tmp_path / "policy.toml"
    path.write_text(text)

    async def main() -> None:
        with Log() as log:
            async with Broker(broker_settings(policy=path)):
                pass
        [line] = [line for line in log.lines if "[[caller]]" in line]
        assert f"policy {path} has no [[caller]], so nobody may reach anything" in line

    run(main())


@pytest.mark.parametrize("key", ["dry-run", "dry_run"])
def test_a_dry_run_only_logs(key: str) -> None:
    assert dial(f"{key} = true\n", user="eve") is None
    with Log() as log:
        assert dial(f'{key} = true\n[[caller]]\nusers = "alice"\n', user="eve") is None
    [decision] = decisions(log.lines)
    assert (decision["policy"], decision["dry_run"], decision["user"]) == ("deny", True, "eve")


def test_the_documented_policy_does_what_is_said_of_it() -> None:
    [rules] = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    night = datetime(2026, 11, 23, 23, 0)
    assert dial(rules, user="alice", source="10.0.0.1") is None
    assert dial(rules, user="alice")
    assert dial(rules, certificate="1.ci.example") is None
    prod = view("web", labels={"env": "production"})
    assert dial(rules, certificate="1.ci.example", agent=prod, now=night)
    assert dial(rules, certificate="1.ci.example", agent=prod) is None


# In a broker


def settings_with(folder: Path, rules: str, **changes: object) -> BrokerSettings:
    path = folder / "policy.toml"
    path.write_text(rules)
    return broker_settings(policy=path, **changes)


def test_a_dial_that_is_denied_asks_no_agent(tmp_path: Path) -> None:
    async def main() -> None:
        settings = settings_with(tmp_path, '[[caller]]\nusers = "alice"\n')
        async with Broker(settings) as broker, scripted(broker) as agent:
            await agent.expect(control.Registered)
            with pytest.raises(NotAuthorized, match=r"no rule of the policy lets user eve reach"):
                await broker.open_connection("testdom", 80, caller=Caller(proxy_user="eve"))
            await agent.vanish()
            with pytest.raises(ControlStreamEnded):
                await agent.expect(control.Connect)

    run(main())


def test_others_may_add_to_the_rules_and_each_can_say_no(tmp_path: Path) -> None:
    """The certificate has its say before, a plugin besides."""

    class Owned:
        @hookimpl
        def whip_authorize_agent(self, registration: Registration) -> str | None:
            return None if "owner" in registration.labels else "say whose it is"

    rules = f'{ANYONE}[[agent]]\nnames = "w*.testdom"\nnetworks = ["127.0.0.0/8", "::1/128"]\n'

    async def main() -> None:
        settings = settings_with(tmp_path, rules, tls=True)
        mine = {"owner": "me"}
        async with Broker(settings, plugins=[Owned()]) as broker:
            good = registration("web", labels=mine)
            async with scripted(broker, good, tls=client_files()) as agent:
                await agent.expect(control.Registered)
            for refused, files, why in (
                (registration("db", labels=mine), client_files(), "no rule of the policy lets it"),
                (registration("web"), client_files(), "say whose it is"),
                (registration("web", labels=mine), client_files("x.otherdom"), "certificate is"),
            ):
                with pytest.raises(ControlStreamEnded, match=why):
                    async with scripted(broker, refused, tls=files) as agent:
                        await agent.expect(control.Registered)

    run(main())


def test_the_proxys_client_is_answered_403_with_the_reason(tmp_path: Path) -> None:
    brokers: list[Broker] = []

    def factory(settings: BrokerSettings, _: object) -> Broker:
        brokers.append(Broker(settings))
        return brokers[0]

    async def main() -> None:
        path = tmp_path / "policy.toml"
        path.write_text('[[caller]]\nusers = "alice"\nnames = "a.testdom"\n')
        options = {"whip_tcp_listen_port": 0, "whip_grpc_listen_port": 0, "proxyauth": "any"}
        async with (
            http_service(answering(b"ok")) as port,
            mitmproxy(addon=WhipAddon(factory), whip_policy=str(path), **options) as p,
            running(
                agent_settings(brokers[0].control_port, ports=f"80={port}", hostname="a")
            ) as agent,
        ):
            await agent.wait_registered()

            async def ask(user: str) -> str:
                url = f"http://{user}:x@127.0.0.1:{p.port}"
                write = ("--write-out", " %{http_code}")
                return (await curl("--proxy", url, "http://testdom/", *write)).output

            assert await ask("alice") == "ok 200"
            denied = await ask("eve")
            assert denied.endswith(" 403")
            assert "no rule of the policy lets user eve reach a.testdom for testdom:80" in denied

    run(main())


def test_the_addon_hands_the_policy_to_its_broker(tmp_path: Path) -> None:
    async def main() -> None:
        broker = FakeBroker()
        async with mitmproxy(broker, whip_policy=str(tmp_path / "policy.toml")):
            assert broker.settings is not None
            assert broker.settings.policy == tmp_path / "policy.toml"

    run(main())
