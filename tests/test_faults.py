"""Faults under load: what is answered is right, the rest fails clearly, nothing is kept."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from faulty import no_more_descriptors, tunnel
from programs import needs_program
from tunnel import run

LONG = 100.0
"""Seconds for a test: processes start, break, come back and settle."""
SHORTAGE = 5.0
"""Seconds without descriptors, at most: shorter than any exchange may take."""
PARTS = ("broker", "one")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_killed_and_started_again(part: str) -> None:
    async def main() -> None:
        async with tunnel() as there, there.broken():
            await there.kill(part)
            await there.load.fails()
            await there.start(part)

    run(main(), patience=LONG)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_stopped_for_longer_than_it_is_believed_and_goes_on(part: str) -> None:
    async def main() -> None:
        async with tunnel() as there, there.broken():
            process = there.processes[part]
            process.signal(signal.SIGSTOP)
            noticing = there.processes["one" if part == "broker" else "broker"]
            await noticing.says("lost the broker" if part == "broker" else "has not answered")
            process.signal(signal.SIGCONT)

    run(main(), patience=LONG)


def test_a_link_that_goes_silent_for_a_while() -> None:
    async def main() -> None:
        async with tunnel() as there, there.broken():
            for link in there.links:
                link.silence()
            await there.processes["broker"].says_often("has not answered", 2)
            await there.processes["one"].says("lost the broker")
            for link in there.links:
                link.heal()
                link.reset()  # as whoever is on the way does that has forgotten a connection

    run(main(), patience=LONG)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["control", "reverse", "both"])
def test_every_connection_is_reset(which: tuple[int, ...]) -> None:
    async def main() -> None:
        async with tunnel() as there, there.broken():
            for number in which:
                there.links[number].reset()

    run(main(), patience=LONG)


def test_an_audit_log_on_a_full_disk_fails_no_request() -> None:
    async def main() -> None:
        async with tunnel("--audit-log=/dev/full") as there:
            async with there.broken():
                await there.processes["broker"].says("audit log")
            assert not there.load.failed

    run(main(), patience=LONG)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_runs_out_of_descriptors_goes_on_when_there_are_some_again(part: str) -> None:
    async def main() -> None:
        async with tunnel() as there, there.broken():
            with (
                no_more_descriptors(there.processes[part].pid),
                contextlib.suppress(TimeoutError),
            ):
                # At the broker new connections may also just wait, and nobody is told.
                async with asyncio.timeout(SHORTAGE):
                    await there.load.fails()

    run(main(), patience=LONG)


@needs_program("faketime")
@pytest.mark.parametrize("jump", ["+1d", "-1h"])
def test_clocks_that_jump_fail_no_request(jump: str, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    env = {
        "LD_PRELOAD": str(next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    async def main() -> None:
        async with tunnel(env=env) as there:
            async with there.broken():
                clock.write_text(jump)
                await there.load.answers()
                clock.write_text("+0")
            assert not there.load.failed
            assert not any("left" in line for line in there.processes["broker"].lines)

    run(main(), patience=LONG)
