"""Agents in processes of their own, in front of real servers, reached by real programs."""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from processes import Process, output_of, peak_memory, started
from programs import needs_program, path_of
from servers import nginx, sshd
from tunnel import Watch, broker_settings, client_files, run, until
from whip_core import Broker

MEGABYTE = 1 << 20
SIZE = 1024 * MEGABYTE
CHUNK = 4 * MEGABYTE
STREAMS = 500


@asynccontextmanager
async def tunnel_to(port: int) -> AsyncIterator[tuple[Broker, Process]]:
    """A broker here and `whip client` over mTLS, with the usual limit of open files."""
    files = client_files()
    watch = Watch()
    async with (
        Broker(broker_settings(tls=True), plugins=[watch]) as broker,
        started(
            *("sh", "-c", 'ulimit -Sn 1024; exec "$@"', "sh", path_of("whip"), "client"),
            *("--hostname=instance1", "--domain=testdom", f"--ports=80={port}"),
            *(f"--tls-key-path={files.key}", f"--tls-cert-path={files.cert}"),
            *(f"--tls-ca-cert-path={files.ca}", "--metrics-listen=", "--log-level=warning"),
            f"localhost:{broker.control_port}",
        ) as client,
    ):
        await watch.until(lambda: len(watch.joined) == 1)
        yield broker, client
        assert client.lines == []


def chunks() -> Iterator[bytes]:
    """`SIZE` octets of which no two chunks are the same."""
    noise = os.urandom(CHUNK - 8)
    for number in range(SIZE // CHUNK):
        yield number.to_bytes(8, "big") + noise


async def head_of(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode()


@needs_program("nginx")
def test_a_gigabyte_goes_up_and_comes_down_unchanged_in_bounded_memory(tmp_path: Path) -> None:
    async def main() -> None:
        async with nginx(tmp_path) as (port, root), tunnel_to(port) as (broker, client):
            before = peak_memory(os.getpid())
            sent = hashlib.sha256()
            reader, writer = await broker.open_connection("instance1.testdom", 80)
            writer.write(f"PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n".encode())
            for chunk in chunks():
                sent.update(chunk)
                writer.write(chunk)
                await writer.drain()
            assert "201 Created" in await head_of(reader)
            with (root / "big").open("rb") as file:
                assert hashlib.file_digest(file, "sha256").digest() == sent.digest()

            received = hashlib.sha256()
            writer.write(b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert f"Content-Length: {SIZE}" in await head_of(reader)
            while data := await reader.read(MEGABYTE):
                received.update(data)
            assert received.digest() == sent.digest()
            writer.close()
            await writer.wait_closed()

            assert client.peak_memory() < 150 * MEGABYTE
            assert peak_memory(os.getpid()) - before < 100 * MEGABYTE

    run(main(), patience=100)


@needs_program("nginx")
def test_five_hundred_streams_at_once_through_one_agent_without_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with nginx(tmp_path) as (port, _), tunnel_to(port) as (broker, __):
            all_open = asyncio.Barrier(STREAMS)

            async def visit() -> None:
                reader, writer = await broker.open_connection("testdom", 80, timeout=60)
                await all_open.wait()
                for _ in range(2):
                    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert "200 OK" in await head_of(reader)
                    assert await reader.readexactly(9) == b"It works."
                writer.close()
                await writer.wait_closed()

            await asyncio.gather(*(visit() for _ in range(STREAMS)))

    run(main(), patience=100)


@needs_program("ssh", "sshd", "ssh-keygen")
def test_ssh_where_the_server_speaks_first_works_as_if_it_were_here(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(os.urandom(8 * MEGABYTE))
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()

    async def main() -> None:
        async with (
            sshd(tmp_path) as (port, key),
            tunnel_to(port) as (broker, _),
            broker.forward("instance1.testdom", 80) as address,
        ):
            assert isinstance(address, tuple)
            ssh = (
                *("ssh", "-F", "none", "-i", str(key), "-p", str(address[1])),
                *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"),
                *("-o", f"UserKnownHostsFile={tmp_path}/known", "-o", "LogLevel=ERROR"),
                f"{getpass.getuser()}@127.0.0.1",
            )
            await asyncio.gather(
                *(check(ssh, number) for number in range(3)),
            )
            shell = f"{' '.join(ssh)} 'cat; exit 7' < {path} | sha256sum; exit 0"
            assert await output_of("sh", "-c", shell) == f"{checksum}  -"

    async def check(ssh: tuple[str, ...], status: int) -> None:
        async with started(*ssh, f"echo hello; exit {status}") as process:
            assert await process.ended() == status, str(process)
            assert process.lines == ["hello"]

    run(main(), patience=100)


@pytest.mark.parametrize("number", [15, 9])
@needs_program("nginx")
def test_a_client_that_is_ended_or_killed_is_gone_at_once(tmp_path: Path, number: int) -> None:
    async def main() -> None:
        async with nginx(tmp_path) as (port, _), tunnel_to(port) as (broker, client):
            client.signal(number)
            await client.ended()
            await until(lambda: not broker.agents)

    run(main(), patience=100)
