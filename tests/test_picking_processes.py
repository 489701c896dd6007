"""Picking by the request and a policy, in a real mitmdump with the addon's script."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from http_tunnel import asking
from mitm import answering, confdir, curl, service
from processes import free_ports, output_of, started
from tunnel import agent_settings, run, running
from whip_addon.commands import ADDON

POLICY = """
[[caller]]
rule = "reads"
who = "*"
names = "testdom"
"""


def mitmdump(*settings: str) -> tuple[str, ...]:
    given = (
        *("whip_external_tcp_address=localhost", "whip_tls=false", "whip_metrics_listen="),
        *(f"confdir={confdir()}", *settings),
    )
    return ("-s", str(ADDON), *(part for text in given for part in ("--set", text)))


def test_a_real_mitmdump_picks_by_the_request_and_keeps_to_the_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)

    async def ask(proxy: int, url: str, users: list[str]) -> str:
        arguments = asking(url, *[[f"x-user: {user}"] for user in users])
        each = ("--proxy", f"http://127.0.0.1:{proxy}")
        given = [part for text in arguments for part in (text, *(each if text == "--next" else ()))]
        return (await curl(*each, *given)).output

    async def main() -> None:
        proxy_port, control_port, reverse_port = free_ports(3)
        async with (
            started(
                *("mitmdump", "--listen-host=127.0.0.1", f"--listen-port={proxy_port}"),
                *mitmdump(
                    *("whip_listen_host=127.0.0.1", f"whip_grpc_listen_port={control_port}"),
                    f"whip_tcp_listen_port={reverse_port}",
                    "whip_picker=two-choices,testdom=sticky:header=x-user",
                    f"whip_policy={tmp_path / 'policy.toml'}",
                    "whip_outlier_ejection=true",
                ),
            ) as process,
            AsyncExitStack() as stack,
        ):
            await process.says(f"agents register at port {control_port}")
            await process.says(f"listening at 127.0.0.1:{proxy_port}")
            for name, domain in (
                *(("a", "testdom"), ("b", "testdom"), ("c", "testdom")),
                ("secret", "otherdom"),
            ):
                port = await stack.enter_async_context(service(answering(name.encode() + b"\n")))
                agent = await stack.enter_async_context(
                    running(
                        agent_settings(
                            control_port, ports=f"80={port}", hostname=name, domain=domain
                        )
                    )
                )
                await agent.wait_registered()
            users = [f"user{number % 8}" for number in range(24)]
            served = (await ask(proxy_port, "http://testdom/", users)).split()
            assert served[:8] == served[8:16] == served[16:]
            assert set(served) == {"a", "b", "c"}
            denied = await ask(proxy_port, "http://otherdom/", ["me"])
            assert "no rule of the policy lets 127.0.0.1 reach secret.otherdom" in denied
            line = await process.says('{"policy": "deny", "rule": null, "kind": "dial"')
            assert '"agent": "secret.otherdom"' in line
            await process.says('{"policy": "allow", "rule": "reads", "kind": "dial"')

    run(main())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("whip_picker=best", "whip: whip_picker: there is no picker 'best'; choose one of random,"),
        ("whip_policy=/nowhere.toml", "whip: policy /nowhere.toml: cannot read it"),
    ],
)
def test_a_wrong_setting_ends_mitmdump_with_one_line(setting: str, says: str) -> None:
    async def main() -> None:
        [port] = free_ports(1)
        async with started(
            "mitmdump", "--listen-host=127.0.0.1", f"--listen-port={port}", *mitmdump(setting)
        ) as process:
            assert await process.ended() == 1
            assert [line for line in process.lines if says in line], process
            assert not any("Traceback" in line for line in process.lines)

    run(main())


def test_the_proxys_help_lists_the_pickers() -> None:
    async def main() -> None:
        said = " ".join((await output_of("whip", "proxy", "--help")).split())
        for name in ("round-robin", "least-streams", "two-choices", "sticky:header=x-user"):
            assert name in said.replace("- ", "-")

    run(main())
