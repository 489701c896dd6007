"""The recipes: run where that can be, else checked by who will read them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from mitmproxy.io import FlowReader

from command_lines import in_shell, parse
from dockerfile import stages, words
from fleet import fleet
from mitm import answering, curl
from processes import free_ports, started
from programs import needs_program, path_of
from tunnel import agent_settings, broker_settings, run, running, service
from whip_addon.facts import FAULT
from whip_core import Broker
from whip_core.metrics import AgentMetrics, BrokerMetrics
from whip_core.monitor import pages, serving
from whip_core.plugin_sources import load_plugins
from whip_core.routes import Routes
from whip_core.settings import DRAIN_TIMEOUT

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
ENTRYPOINTS = {
    name: words(stage.having("ENTRYPOINT")[0])
    for name, stage in stages((ROOT / "Dockerfile").read_text()).items()
    if stage.having("ENTRYPOINT")
}
ONE, TWO = "instance1.testdom", "instance2.testdom"


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def compose() -> dict[str, Any]:
    [document] = documents(RECIPES / "compose" / "compose.yaml")
    services: dict[str, Any] = document["services"]
    return services


def containers() -> list[dict[str, Any]]:
    return [
        container
        for path in (RECIPES / "kubernetes").glob("*.yaml")
        for document in documents(path)
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
    ]


def test_every_recipe_is_listed() -> None:
    listed = set(re.findall(r"\]\(([^)/]+)", (RECIPES / "README.md").read_text()))
    there = {
        path.relative_to(RECIPES).parts[0]
        for path in RECIPES.rglob("*")
        if path.is_file() and not path.name.startswith(".") and "__pycache__" not in path.parts
    }
    assert there - {"README.md"} == listed


@needs_program("yamllint")
def test_the_linter_finds_nothing() -> None:
    done = subprocess.run(
        [path_of("yamllint"), "--strict", "-c", str(RECIPES / ".yamllint"), str(RECIPES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


# Containers


def test_the_commands_of_compose_are_whips() -> None:
    ours = {name: each for name, each in compose().items() if "build" in each}
    assert len(ours) == 4
    for name, each in ours.items():
        if name == "certificates":
            [script] = each["command"]
            found = list(in_shell(script))
            assert [command[1] for command in found] == ["pki"] * 3
            for command in found:
                parse(command)
        else:
            parse([*ENTRYPOINTS[each["build"]["target"]], *each["command"]])
            assert each["read_only"] is True


def test_what_compose_mounts_and_waits_for_is_there() -> None:
    [document] = documents(RECIPES / "compose" / "compose.yaml")
    for each in compose().values():
        for mount in each.get("volumes", ()):
            source = mount.partition(":")[0]
            known = source in document["volumes"]
            assert known or (RECIPES / "compose" / source).exists(), source
        assert set(each.get("depends_on", ())) <= set(compose())
    [config] = documents(RECIPES / "prometheus" / "prometheus.yaml")
    for job in config["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            name, _, port = target.partition(":")
            assert f"--metrics-listen=0.0.0.0:{port}" in compose()[name]["command"]


def test_compose_waits_for_who_is_ready() -> None:
    """Every check is run, against the pages that broker and agent serve."""
    programs = {
        each["build"]["target"]: each["healthcheck"]["test"]
        for each in compose().values()
        if "healthcheck" in each
    }
    assert programs.keys() == {"agent", "proxy"}

    async def check(target: str, why: str | None) -> bool:
        # The recipe's port may be taken here.
        served = Routes(pages(lambda _: ("text/plain", b""), lambda: why))
        async with serving("127.0.0.1:0", served, chosen=True) as address:
            port = "9464" if target == "proxy" else "9465"
            assert programs[target][:3] == ["CMD", "python", "-c"]
            program = programs[target][3]
            assert f"127.0.0.1:{port}/" in program
            program = program.replace(f"127.0.0.1:{port}", str(address))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program), stderr=asyncio.subprocess.DEVNULL
            )
            return await process.wait() == 0

    for target in programs:
        assert run(check(target, None))
        assert not run(check(target, "draining"))


def test_kubernetes_restarts_what_hangs_and_sends_nobody_to_what_drains() -> None:
    probes = {
        each["image"].partition(":")[0]: {
            kind: each[kind]["httpGet"]
            for kind in ("livenessProbe", "readinessProbe")
            if kind in each
        }
        for each in containers()
        if each["image"].startswith("whip-")
    }
    alive = {"path": "/healthz", "port": "metrics"}
    assert probes == {
        "whip-agent": {"livenessProbe": alive},
        "whip-proxy": {
            "livenessProbe": alive,
            "readinessProbe": {"path": "/readyz", "port": "metrics"},
        },
    }


def test_the_commands_of_kubernetes_are_whips() -> None:
    ours = [each for each in containers() if each["image"].startswith("whip-")]
    assert len(ours) == 2
    for each in ours:
        target = each["image"].removeprefix("whip-").partition(":")[0]
        arguments = [re.sub(r"\$\(\w+\)", "pod-1", argument) for argument in each["args"]]
        parse([*ENTRYPOINTS[target], *arguments])
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = {mount["name"] for mount in each["volumeMounts"]}
        assert "certificates" in mounted


@needs_program("kubernetes-validate")
@pytest.mark.parametrize("name", ["broker", "agent"])
def test_kubernetes_manifests_fit_their_schemas(name: str) -> None:
    done = subprocess.run(
        [path_of("kubernetes-validate"), "--strict", f"{RECIPES}/kubernetes/{name}.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_secrets_and_names_are_the_ones_that_are_made() -> None:
    certificates = {
        document["spec"]["secretName"]: document["spec"].get("dnsNames", [])
        for document in documents(RECIPES / "kubernetes" / "certificates.yaml")
        if document["kind"] == "Certificate"
    }
    text = "".join(path.read_text() for path in (RECIPES / "kubernetes").glob("[ab]*.yaml"))
    assert set(re.findall(r"secretName: ([\w-]+)", text)) <= certificates.keys()
    [endpoint] = re.findall(r"- (\S+):50051$", text, re.MULTILINE)
    assert endpoint in certificates["whip-broker"]


# systemd, Prometheus, Grafana


@needs_program("systemd-analyze")
@pytest.mark.parametrize("unit", sorted((RECIPES / "systemd").iterdir()), ids=lambda p: p.name)
def test_systemd_takes_the_unit(unit: Path) -> None:
    done = subprocess.run(
        [path_of("systemd-analyze"), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    [start] = re.findall(r"^ExecStart=/usr/bin/env (.+)$", unit.read_text(), re.MULTILINE)
    command = start.split()
    required = {"whip client": ["--domain=a", "--ports=80"], "whip proxy": []}
    parse(
        [word.replace("$WHIP_ENDPOINTS", "b:1") for word in command] + required[start[:11].strip()]
    )


def settings_of(unit: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))


@pytest.mark.parametrize("unit", sorted((RECIPES / "systemd").iterdir()), ids=lambda p: p.name)
def test_systemd_hears_of_readiness_and_of_a_loop_that_hangs(unit: Path) -> None:
    settings = settings_of(unit)
    assert (settings["Type"], settings["WatchdogSec"]) == ("notify", "30")
    is_broker = unit.name == "whip-proxy.service"
    assert settings.get("RuntimeDirectory") == ("whip" if is_broker else None)
    # An agent may have to wait for its broker.
    assert settings.get("TimeoutStartSec") == (None if is_broker else "infinity")


def test_whoever_stops_something_waits_until_it_has_drained() -> None:
    waits = [int(settings_of(unit)["TimeoutStopSec"]) for unit in (RECIPES / "systemd").iterdir()]
    waits += [
        int(service.get("stop_grace_period", "0s").removesuffix("s"))
        for name, service in compose().items()
        if name in ("proxy", "agent-one", "agent-two")
    ]
    waits += [
        document["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 0)
        for name in ("broker", "agent")
        for document in documents(RECIPES / "kubernetes" / f"{name}.yaml")
        if document["kind"] == "Deployment"
    ]
    assert len(waits) == 7
    assert all(wait >= DRAIN_TIMEOUT + 10 for wait in waits), waits


@needs_program("promtool")
def test_prometheus_takes_the_rules_and_they_fire_when_they_should() -> None:
    for arguments in (
        ("check", "config", "prometheus.yaml"),
        ("test", "rules", "alerts-test.yaml"),
    ):
        done = subprocess.run(
            [path_of("promtool"), *arguments],
            cwd=RECIPES / "prometheus",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def exported() -> set[str]:
    """The name of every series that a broker or an agent can have."""
    names: set[str] = set()
    broker = BrokerMetrics()
    broker.watch_parked(dict)
    for registry in (broker.registry, AgentMetrics().registry):
        names |= set(registry._names_to_collectors)
    return names


@pytest.mark.parametrize("name", ["prometheus/alerts.yaml", "grafana/whip.json"])
def test_the_metrics_that_rules_and_dashboard_name_exist(name: str) -> None:
    named = set(re.findall(r"\bwhip_[a-z_]+", (RECIPES / name).read_text()))
    assert len(named) > 4
    assert named <= exported()


def test_the_dashboards_panels_are_told_apart_and_do_not_overlap() -> None:
    panels = json.loads((RECIPES / "grafana" / "whip.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)


# Plugins and scripts


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_canaries_or_without_others_the_picker_picks() -> None:
    async def main() -> None:
        plugins = load_plugins([str(RECIPES / "canary.py")])
        assert len(plugins) == 1
        async with Broker(broker_settings(), plugins=plugins) as broker:
            for labels in ({}, {"canary": "true"}):
                settings = agent_settings(broker.control_port, ports="80=1", labels=labels)
                async with running(settings) as agent:
                    await agent.wait_registered()
                    assert script("canary").whip_pick(broker.agents) is None

    run(main())


def test_the_canary_gets_its_share_and_no_more() -> None:
    class Agent:
        def __init__(self, **labels: str) -> None:
            self.labels = labels

    module = script("canary")
    canary, others = Agent(canary="true"), [Agent(), Agent(canary="false")]
    for share, expected in ((0.0, set(others)), (1.0, {canary})):
        module.SHARE = share  # type: ignore[attr-defined]
        assert {module.whip_pick([canary, *others]) for _ in range(200)} == expected


def test_the_recorder_keeps_each_instances_flows_in_a_file_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        services = {ONE: answering(b"one"), TWO: answering(b"two")}
        async with fleet(services, *script("recorder").addons, recorded=str(tmp_path)) as it:
            for name in (ONE, TWO, ONE, "nobody.testdom"):
                await curl("--proxy", it.proxy.url, f"http://{name}/")

    run(main())
    found = {}
    for path in tmp_path.iterdir():
        with path.open("rb") as file:
            found[path.name] = [flow.response.text for flow in FlowReader(file).stream()]
    assert found == {f"{ONE}.mitm": ["one", "one"], f"{TWO}.mitm": ["two"]}


def test_chaos_lets_one_instance_misbehave_and_says_so_on_its_flows() -> None:
    async def main() -> None:
        module = script("chaos")
        module.FAULTS = ("status=503",)  # type: ignore[attr-defined]
        services = {ONE: answering(b"one"), TWO: answering(b"two")}
        options = {"chaos": ONE, "chaos_seconds": 1}
        async with fleet(services, *module.addons, **options) as it:
            while not it.flows or FAULT not in it.flows[-1].metadata:
                await curl("--proxy", it.proxy.url, f"http://{ONE}/")
            await curl("--proxy", it.proxy.url, f"http://{TWO}/")
            assert FAULT not in it.flows[-1].metadata

    run(main())


def test_the_forwards_are_whips_command() -> None:
    path = RECIPES / "forwards.sh"
    subprocess.run(["sh", "-n", str(path)], check=True)
    text = path.read_text().replace('"${BROKER_NAME:-localhost}"', "localhost")
    [command] = in_shell(text)
    context = parse(command)
    assert [str(each) for each in context.params["forwards"]] != []


def test_private_services_are_tested_with_pytest_by_name() -> None:
    async def main() -> None:
        grpc, tcp = free_ports(2)
        variables = {"WHIP_GRPC_LISTEN_PORT": str(grpc), "WHIP_TCP_LISTEN_PORT": str(tcp)}
        async with (
            service(answering(b"It works.")) as port,
            running(agent_settings(grpc, ports=f"{port}")),
            started(
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                RECIPES / "pytest_private_service",
                env=variables,
                cwd=ROOT,
            ) as tests,
        ):
            assert await tests.ended() == 0, str(tests)
            await tests.says("2 passed")

    run(main())
