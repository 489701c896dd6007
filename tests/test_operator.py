"""What an operator does, with the real commands: look, ask for health, send an agent away."""

from __future__ import annotations

import json
from pathlib import Path

from processes import free_ports, output_of, started
from programs import needs_program
from tunnel import run


@needs_program("whip", "curl")
def test_the_commands_find_the_broker_that_runs_and_the_proxy_shows_the_page(
    tmp_path: Path,
) -> None:
    proxy_port, tcp_port, grpc_port, metrics_port, health_port = free_ports(5)
    env = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "TERM": "xterm"}

    async def whip(*arguments: str) -> tuple[int, str]:
        async with started("whip", *arguments, env=env) as process:
            return await process.ended(), "\n".join(process.lines)

    async def curl(*arguments: str) -> str:
        return await output_of("curl", "--silent", "--show-error", *arguments)

    async def ready(port: int) -> str:
        return await curl(f"127.0.0.1:{port}/readyz")

    async def main() -> None:
        async with (
            started(
                *("whip", "proxy", "--tls=false", f"--proxy-listen-port={proxy_port}"),
                *("--whip-external-tcp-address=localhost", f"--whip-tcp-listen-port={tcp_port}"),
                *(f"--whip-grpc-listen-port={grpc_port}",),
                f"--metrics-listen=127.0.0.1:{metrics_port}",
                env=env,
            ) as proxy,
            started(
                *("whip", "client", "--hostname=instance1", "--domain=testdom", "--ports=80"),
                *("--tls=false", f"--metrics-listen=127.0.0.1:{health_port}"),
                f"localhost:{grpc_port}",
            ) as client,
        ):
            await proxy.says("control socket")
            await client.says("registered instance1.testdom")
            status, told = await whip("agents", "--json")
            assert status == 0
            assert [agent["name"] for agent in json.loads(told)] == ["instance1.testdom"]
            assert await ready(metrics_port) == await ready(health_port) == "ok"
            through = ("--proxy", f"localhost:{proxy_port}", "http://whip.internal/")
            page = await curl(*through)
            assert page == await curl(f"localhost:{metrics_port}/")
            assert "<title>whip</title>" in page
            status, told = await whip("agents", "--kick=instance2.testdom")
            assert (status, "names like it: instance1.testdom" in told) == (1, True)
            status, _ = await whip("agents", "--kick=instance1.testdom")
            assert status == 0
            await client.says("ended by the operator")
        assert list((tmp_path / "whip").iterdir()) == []

    run(main())
