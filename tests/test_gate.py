"""Clients that come too early wait until mitmproxy has started."""

from __future__ import annotations

import asyncio

from mitmproxy.test import taddons, tflow

from processes import free_ports, started
from tunnel import run
from whip_addon.gate import Gate


class TLSConfig:
    """What the gate looks at of mitmproxy's own addon."""

    name = "tlsconfig"
    certstore: object = None

    def running(self) -> None:
        self.certstore = object()


def test_a_client_waits_until_the_addons_behind_whips_have_heard_that_mitmproxy_runs() -> None:
    async def main() -> None:
        tls, gate = TLSConfig(), Gate()
        with taddons.context(gate, tls) as context:
            waiting = asyncio.get_running_loop().create_task(
                gate.client_connected(tflow.tclient_conn())
            )
            await asyncio.sleep(0)
            assert not waiting.done()
            await context.master.running()
            await waiting
            assert tls.certstore is not None
            await asyncio.sleep(0)
            assert context.master.addons.get("whip.gate.opener") is None
            await gate.client_connected(tflow.tclient_conn())

    run(main())


def test_a_request_in_the_first_moment_is_answered_and_the_proxy_goes_on() -> None:
    port, control_port, reverse_port = free_ports(3)
    request = b"GET http://a.testdom/ HTTP/1.1\r\nHost: a.testdom\r\n\r\n"

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await reader.readline()
        finally:
            writer.close()

    async def main() -> None:
        async with started(
            *("whip", "proxy", f"--proxy-listen-port={port}", "--domain=testdom", "--tls=false"),
            *("--whip-external-tcp-address=localhost", "--metrics-listen=", "--control-socket="),
            *(f"--whip-grpc-listen-port={control_port}", f"--whip-tcp-listen-port={reverse_port}"),
        ) as proxy:
            while True:
                try:
                    first = await ask()
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0)  # as soon as it listens
            assert b"502" in first, str(proxy)
            assert b"502" in await ask(), str(proxy)

    run(main())
