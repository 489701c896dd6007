"""A name of whip's is never asked of DNS, whatever becomes of the request for it.

In a network namespace of its own, where the only resolver is ours and writes down what it
is asked, a real mitmdump with the addon, an agent, and clients of all kinds.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dns_server import DNSServer
from mitm import answering, curl, service
from namespaces import needs_namespaces
from processes import free_ports, started
from programs import needs_program, needs_root, path_of
from tunnel import agent_settings, running

URLS = [
    "http://instance1.testdom/",
    "http://Instance1.TestDom./",
    "http://testdom/",
    "http://instance1.testdom:81/",  # not exposed
    "http://nobody.testdom/",
    "http://a.b.instance1.testdom/",
    "https://instance1.testdom/",
    "https://nobody.testdom/",
    "http://instance1\N{IDEOGRAPHIC FULL STOP}testdom/",
    "ws://instance1.testdom/",
]
RAW = [
    "GET http://instance1\N{IDEOGRAPHIC FULL STOP}testdom/ HTTP/1.1\r\n\r\n",
    "GET http://nobody\N{FULLWIDTH FULL STOP}testdom/ HTTP/1.1\r\n\r\n",
    "GET http://INSTANCE1.testdom./ HTTP/1.1\r\nHost: nobody.testdom\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: nobody.testdom\r\n\r\n",
    "CONNECT nobody.testdom:443 HTTP/1.1\r\n\r\n",
]
PUBLIC = "public.example"


async def raw(port: int, said: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said.encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def watched(fallback: bool) -> dict[str, list[str]]:
    """What the clients were told, and what was asked of DNS, while all that was tried."""
    statuses: list[str] = []
    http, socks, control, reverse = free_ports(4)
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))
    resolver.setblocking(False)
    async with (
        DNSServer(resolver) as dns,
        service(answering(b"ok")) as web,
        started(
            *("whip", "mitmdump", "--listen-host", "127.0.0.1"),
            *("--mode", f"regular@{http}", "--mode", f"socks5@{socks}"),
            *("--set", "whip_external_tcp_address=localhost", "--set", "whip_tls=false"),
            *("--set", "whip_domains=testdom", "--set", f"whip_fallback={str(fallback).lower()}"),
            *("--set", f"whip_grpc_listen_port={control}"),
            *("--set", f"whip_tcp_listen_port={reverse}"),
            *("--set", "whip_metrics_listen=", "--set", "whip_control_socket="),
        ) as mitmdump,
    ):
        await mitmdump.says("agents register at port")
        async with running(agent_settings(control, ports=f"80={web}")) as agent:
            await agent.wait_registered()
            for url in URLS:
                for way in (
                    ("--proxy", f"http://127.0.0.1:{http}"),
                    ("--proxy", f"http://127.0.0.1:{http}", "--proxytunnel"),
                    ("--proxy", f"socks5h://127.0.0.1:{socks}"),
                ):
                    told = await curl("--max-time", "5", "--write-out", "%{http_code}", *way, url)
                    statuses.append(told.output[-3:])
            for said in RAW:
                await raw(http, said)
        for url in URLS[:2]:  # its agent has gone
            await curl("--proxy", f"http://127.0.0.1:{http}", url)
        await curl("--proxy", f"http://127.0.0.1:{http}", f"http://{PUBLIC}/")
    return {"statuses": statuses, "questions": dns.questions}


@needs_root
@needs_namespaces
@needs_program("unshare", "mount", "curl")
@pytest.mark.parametrize("fallback", [False, True], ids=["closed", "fallback"])
def test_no_name_of_whips_is_ever_asked_of_dns(fallback: bool, tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    inside = f"ip link set lo up && mount --bind {resolver} /etc/resolv.conf && exec"
    done = subprocess.run(
        [
            *(path_of("unshare"), "--net", "--mount", "sh", "-c", f'{inside} "$@"', "sh"),
            *(sys.executable, __file__, str(fallback)),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["statuses"][:3] == ["200"] * 3
    assert [asked for asked in told["questions"] if "testdom" in asked.lower()] == []
    # And it would have been seen: what may go out is asked for.
    assert any(asked.startswith(PUBLIC) for asked in told["questions"]) is fallback


if __name__ == "__main__":
    print(json.dumps(asyncio.run(watched(sys.argv[1] == "True"))))
