"""A service that takes nothing holds up nobody for ever: what is left for it is cut off."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from tunnel import (
    Watch,
    agent_settings,
    broker_settings,
    client_files,
    echo,
    exchange,
    run,
    running,
    service,
    until,
)
from whip_core import Broker, drain, framed

BOUND = 0.3
"""Seconds, where a user has 30."""
TOO_MUCH = 64 << 20
"""Octets: more than all buffers on the way take."""


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("then", ["stalls", "goes on"])
def test_a_stream_that_was_closed_is_cut_if_its_rest_is_not_taken_within_the_bound(
    then: Literal["stalls", "goes on"], tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "DRAIN_TIMEOUT", BOUND / 3)
    monkeypatch.setattr(drain, "STALL_TIMEOUT", BOUND if then == "stalls" else 60.0)
    monkeypatch.setattr(framed, "LINGER_TIMEOUT", BOUND)
    may_read = asyncio.Event()
    got: list[int | str] = []

    async def stubborn(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await may_read.wait()
        total = 0
        try:
            while data := await reader.read(1 << 20):
                total += len(data)
            got.append(total)
        except ConnectionResetError:
            got.append("reset")

    async def main() -> None:
        watch = Watch()
        files = client_files() if tls else None
        async with (
            service(stubborn) as port,
            service(echo) as echo_port,
            Broker(broker_settings(tls=tls or None), plugins=[watch]) as broker,
            running(
                agent_settings(broker.control_port, ports=f"80={port},81={echo_port}", tls=files)
            ),
        ):
            await watch.until(lambda: bool(watch.joined))
            _, writer = await broker.open_connection("instance1.testdom", 80)
            writer.write(bytes(TOO_MUCH))
            writer.close()
            # Others go on meanwhile.
            streams = await broker.open_connection("instance1.testdom", 81)
            assert await exchange(streams, b"x") == b"x"
            if then == "goes on":
                assert len(watch.closed) == 1
                may_read.set()
            await watch.until(lambda: len(watch.closed) == 2)
            if then == "stalls":
                carrier = writer.transport._carrier  # type: ignore[attr-defined]
                await until(lambda: carrier.lost)
                may_read.set()  # what it finds then is not a whole
            await until(lambda: bool(got))
            [closed] = [each for each in watch.closed if each.port == 80]
            if then == "stalls":
                assert (closed.cause, got) == ("reset", ["reset"])
            else:
                assert (closed.cause, got) == ("end", [TOO_MUCH])
            assert broker.agents[0].streams == 0

    run(main())
