"""`whip doctor`: one line for each check, status 1 if there is a problem."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from client_agent import doctor as doctor_module
from processes import free_ports, started
from tunnel import agent_settings, broker_settings, echo, run, running, service
from whip_core import Broker, TLSFiles
from whip_core.checkup import Checkup
from whip_core.dial_address import DialAddress
from whip_core.testing import Authority
from whip_core.testing.broker import ScriptedBroker


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def flags(files: TLSFiles) -> list[str]:
    found = [
        f"--tls-key-path={files.key}",
        f"--tls-cert-path={files.cert}",
        f"--tls-ca-cert-path={files.ca}",
    ]
    return [*found, f"--tls-crl-path={files.crl}"] if files.crl else found


async def doctor(*arguments: str, **env: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit status, and the findings by their check."""
    async with started("whip", "doctor", *arguments, "--json", env=env) as process:
        status = await process.ended()
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads("\n".join(process.lines)):
        found.setdefault(finding["check"], []).append(finding)
    return status, found


def statuses(found: dict[str, list[dict[str, str]]]) -> dict[str, set[str]]:
    return {check: {finding["status"] for finding in each} for check, each in found.items()}


def problem(found: dict[str, list[dict[str, str]]], check: str) -> str:
    """The text of the only problem, which has to be of that check."""
    [only] = [each for of in found.values() for each in of if each["status"] == "problem"]
    assert only["check"] == check, found
    return f"{only['text']}; {only['remedy']}"


@asynccontextmanager
async def broker(ca: Authority, **changes: Any) -> AsyncIterator[Broker]:
    async with Broker(broker_settings(tls=ca.server_files(), **changes)) as found:
        yield found


# For agents


def test_all_is_well_with_an_agent_that_could_register(ca: Authority) -> None:
    async def main() -> None:
        async with broker(ca) as here:
            status, found = await doctor(
                *("client", f"localhost:{here.control_port}", "--hostname=a", "--domain=testdom"),
                *flags(ca.client_files("a.testdom")),
            )
        assert status == 0, found
        assert statuses(found) == {
            check: {"ok"}
            for check in (
                *("versions", "open files", "private key", "certificate", "certificate's name"),
                *("name", "control port", "registration", "clock", "reverse port"),
            )
        }
        assert here.agents == []

    run(main())


def test_an_agent_that_runs_is_left_alone(ca: Authority) -> None:
    async def main() -> None:
        files = ca.client_files("a.testdom")
        async with service(echo) as port, broker(ca) as here:
            settings = agent_settings(
                here.control_port, ports=f"80={port}", hostname="a", tls=files
            )
            async with running(settings) as agent:
                await agent.wait_registered()
                [before] = here.agents
                endpoint = f"localhost:{here.control_port}"
                arguments = ("--hostname=a", "--domain=testdom", *flags(files))
                status, found = await doctor("client", endpoint, *arguments)
                [after] = here.agents
        assert status == 0, found
        assert before.session_id == after.session_id
        assert "held by a live agent" in found["registration"][0]["text"]

    run(main())


def test_what_is_wrong_with_an_agents_certificate_is_said(ca: Authority, tmp_path: Path) -> None:
    good, server = ca.client_files("a.testdom"), ca.server_files()
    old = ca.pki.issue_client("a", "testdom", valid_for=timedelta(days=5))
    soon = TLSFiles.of(tmp_path / "key.pem", tmp_path / "cert.pem", ca.ca_cert)
    soon.key.write_bytes(old.key_pem)
    soon.key.chmod(0o644)
    soon.cert.write_bytes(old.cert_pem)

    async def main() -> None:
        [nobody] = free_ports(1)
        name = ("--hostname=a", "--domain=testdom")

        async def look(files: TLSFiles, *name: str) -> tuple[int, dict[str, Any]]:
            return await doctor("client", f"localhost:{nobody}", *name, *flags(files))

        status, found = await look(server, *name)
        assert status == 1
        assert "the certificate of a server, but an agent needs" in problem(found, "certificate")

        status, found = await look(TLSFiles.of(good.key, soon.cert, good.ca), *name)
        assert "does not belong to" in problem(found, "certificate")

        _, found = await look(soon)
        assert {finding["remedy"] for finding in found["certificate"]} == {"renew it"}
        assert found["private key"][0]["remedy"] == f"chmod 600 {soon.key}"
        assert "nothing listens there" in problem(found, "control port")

        _, found = await look(good, "--hostname=b", "--domain=testdom")
        assert statuses(found)["certificate's name"] == {"problem"}

        crl = TLSFiles.of(good.key, good.cert, good.ca, ca.write_crl(valid_for=-timedelta(days=1)))
        _, found = await look(crl)
        assert statuses(found)["revocation list"] == {"problem"}

    run(main())


def test_what_is_wrong_with_ports_and_names_is_said(ca: Authority) -> None:
    files = ca.client_files("a.testdom")

    async def main() -> None:
        name = ("--hostname=a", "--domain=testdom", *flags(files))
        status, found = await doctor("client", "nowhere.invalid", *name)
        assert status == 1
        assert "nowhere.invalid is not found" in problem(found, "name")

        async with broker(ca, external_host="localhost", external_port=1) as here:
            _, found = await doctor("client", f"localhost:{here.control_port}", *name)
            assert "localhost port 1, where the broker has us connect back to" in problem(
                found, "reverse port"
            )
        async with Broker(broker_settings(tls=ca.server_files(["other.example"]))) as here:
            _, found = await doctor("client", f"localhost:{here.control_port}", *name)
            assert "is not for localhost" in problem(found, "control port")
        async with Broker(broker_settings()) as here:
            _, found = await doctor("client", f"localhost:{here.control_port}", *name)
            assert "does not speak TLS" in problem(found, "control port")
        stranger = Authority(ca.folder / "stranger")
        async with broker(stranger) as here:
            _, found = await doctor("client", f"localhost:{here.control_port}", *name)
            assert "its certificate is not trusted" in problem(found, "control port")
        mixed = stranger.client_files("a.testdom")
        ours = ("--hostname=a", "--domain=testdom")
        async with broker(ca) as here:
            wrong = flags(TLSFiles.of(mixed.key, mixed.cert, ca.ca_cert))
            _, found = await doctor("client", f"localhost:{here.control_port}", *ours, *wrong)
            assert "does not accept our certificate" in problem(found, "control port")

    run(main())


# For brokers


def test_a_broker_that_could_start_and_one_that_runs_are_well(ca: Authority) -> None:
    files = ca.server_files()

    async def main() -> None:
        control, reverse, listen = free_ports(3)
        options = [
            "--whip-external-tcp-address=localhost",
            f"--whip-grpc-listen-port={control}",
            f"--whip-tcp-listen-port={reverse}",
            *flags(files),
        ]
        status, found = await doctor("proxy", "--proxy-listen-port=1", *options)
        assert status == 0, found
        assert "is free" in found["control port"][0]["text"]
        # Agents on other machines could not connect back to localhost.
        assert statuses(found)["name"] == {"warning"}

        async with started("whip", "forward", f"{listen}:a.testdom:80", *options) as process:
            await process.says("forwarding")
            status, found = await doctor("forward", *options)
        assert status == 0, found
        for check in ("control port", "reverse port"):
            assert "is reachable, and proves its name" in found[check][0]["text"]

    run(main())


def test_what_is_wrong_with_a_broker_is_said(ca: Authority) -> None:
    files = ca.server_files(["other.example"], [])

    async def main() -> None:
        status, found = await doctor("proxy", "--tls=false")
        assert status == 1
        assert "--whip-external-tcp-address" in problem(found, "options")

        ports = ("--whip-grpc-listen-port=0", "--whip-tcp-listen-port=0")
        address = "--whip-external-tcp-address"
        _, found = await doctor("proxy", f"{address}=nowhere.invalid", *ports, *flags(files))
        assert "nowhere.invalid is not found here" in problem(found, "name")
        assert statuses(found)["certificate's name"] == {"warning"}

        agents = flags(ca.client_files("a.testdom"))
        _, found = await doctor("proxy", f"{address}=localhost", *ports, *agents)
        assert "the certificate of a client, but a broker needs" in problem(found, "certificate")

    run(main())


def test_a_broker_alone_is_looked_at_with_its_dial_sockets(ca: Authority, tmp_path: Path) -> None:
    async def main() -> None:
        control, reverse, dials = free_ports(3)
        options = [
            "--whip-external-tcp-address=localhost",
            f"--whip-grpc-listen-port={control}",
            f"--whip-tcp-listen-port={reverse}",
            f"--dial-listen=unix:{tmp_path / 'dial.sock'}",
            f"--dial-listen=127.0.0.1:{dials}",
            *flags(ca.server_files()),
        ]
        _, found = await doctor("broker", *options)
        assert "say who may dial at 127.0.0.1" in problem(found, "options")
        options.append("--dial-allow=a.dialers")
        status, found = await doctor("broker", *options)
        assert status == 0, found
        assert all("is free" in each["text"] for each in found["dial socket"])
        async with started("whip", "broker", *options, "--metrics-listen=") as process:
            await process.says("agents register at port")
            status, found = await doctor("broker", *options)
        assert status == 0, found
        assert [each["text"].partition(" ")[2] for each in found["dial socket"]] == [
            "lets us dial as this user, whose word is taken; agents there: 0",
            f"port {dials} is reachable, and proves its name over TLSv1.3",
        ]

    run(main())


# For what dials through a broker


def test_who_dials_is_told_as_whom_or_why_it_may_not(ca: Authority, tmp_path: Path) -> None:
    async def main() -> None:
        path = DialAddress(path=tmp_path / "dial.sock")
        dials = (path, DialAddress(host="127.0.0.1"))
        async with broker(ca, dial_listen=dials, dial_allow=("a.dialers",)) as here:
            address = f"--broker=localhost:{here.dial_addresses[1].port}"

            async def look(*arguments: str) -> tuple[int, dict[str, Any]]:
                return await doctor("forward", *arguments)

            status, found = await look(f"--broker={path}")
            assert status == 0, found
            assert "lets us dial as this user" in found["dial socket"][0]["text"]

            status, found = await look(address, *flags(ca.client_files("a.dialers")))
            assert status == 0, found
            assert "lets us dial as a.dialers; agents" in found["dial socket"][0]["text"]

            _, found = await look(address, *flags(ca.client_files("b.dialers")))
            assert "b.dialers, which may not dial here" in problem(found, "dial socket")

        _, found = await look(f"--broker={path}")
        assert "no broker can be reached" in problem(found, "dial socket")
        _, found = await look(address, *flags(ca.client_files("a.dialers")))
        assert "nothing listens there" in problem(found, "dial port")

    run(main())


def test_a_broker_that_does_not_answer_is_said_to_be_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_module, "ANSWER_TIMEOUT", 0.1)

    async def main() -> None:
        async with ScriptedBroker() as silent:
            checkup, settings = Checkup(), agent_settings(silent.control_port, ports="80")
            await doctor_module._Doctor(checkup, settings, named=True).check()
        [problem] = [each for each in checkup.findings if each.check == "registration"]
        assert problem.text == f"127.0.0.1:{silent.control_port}: no answer within 0.1 s"

    run(main())


def test_the_lines_are_for_people(ca: Authority) -> None:
    async def main() -> None:
        [nobody] = free_ports(1)
        async with started("whip", "doctor", "client", f"127.0.0.1:{nobody}", "--tls=false") as it:
            assert await it.ended() == 1
        [line] = [line for line in it.lines if line.startswith("problem")]
        assert line == (
            f"problem  control port: 127.0.0.1:{nobody}: connection refused: nothing listens "
            "there; is the broker up, with this --whip-grpc-listen-port, and no firewall in "
            "between?"
        )

    run(main())
