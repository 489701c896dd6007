"""Faults under load: what is answered is right, the rest fails clearly, nothing is kept."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from bad_link import BadLink
from dns_server import DNSServer, Mood
from faulty import BROKER, no_more_descriptors, tunnel
from programs import needs_program
from tunnel import run

LONG = 100.0
"""Seconds for a test: processes start, break, come back and settle."""
SHORTAGE = 5.0
"""Seconds without descriptors, at most: shorter than any exchange may take."""
PARTS = ("broker", "one")
MOODS: tuple[Mood, ...] = ("NXDOMAIN", "SERVFAIL", "SILENCE", "EMPTY")


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


# DNS


class Names(DNSServer):
    """The DNS in which the agents find the broker; every answer is good for a moment only."""

    def lead_to(self, address: str) -> None:
        self.set(BROKER, "A", address, ttl=0)

    @property
    def env(self) -> dict[str, str]:
        return {"WHIP_TEST_DNS_PORT": str(self.port)}

    async def asked_often(self, times: int) -> None:
        """Wait until the broker's address has been asked for so many times more."""
        self.questions.clear()
        while self.questions.count(f"{BROKER} A") < times:
            await self._notifications.get()


@pytest.mark.once
def test_a_dns_that_fails_in_each_way_costs_no_request_and_keeps_nobody_away() -> None:
    async def main() -> None:
        async with Names() as names:
            names.lead_to("127.0.0.1")
            async with tunnel(env=names.env, broker_name=BROKER) as there, there.broken():
                for count, mood in enumerate(MOODS, 1):
                    names.fail(BROKER, "A", mood)
                    await names.asked_often(2)
                    await there.load.answers()
                    assert not there.load.failed, f"{mood}: {there.load}"
                    there.links[0].reset()  # they come back to the address that they know
                    await there.processes["one"].says_often("lost the broker", count)
                    await there.load.answers()
                    names.heal()
                    await names.asked_often(2)
                    there.load.failed.clear()  # while nobody was registered

    run(main(), patience=LONG)


@pytest.mark.once
def test_a_dns_whose_answer_changes_leads_the_agents_elsewhere_and_back() -> None:
    async def main() -> None:
        async with Names() as names:
            names.lead_to("127.0.0.1")
            async with tunnel(env=names.env, broker_name=BROKER) as there:
                one = there.links[0]
                async with (
                    BadLink(one.target_port, one.port, "127.0.0.2") as other,
                    there.broken(),
                ):
                    for count, (new, old, address) in enumerate(
                        [(other, one, "127.0.0.2"), (one, other, "127.0.0.1")], 1
                    ):
                        names.lead_to(address)
                        for agent in ("one", "two"):
                            await there.processes[agent].says_often("leaving the broker", count)
                        await old.until_ends(0)
                        old.silence()  # nobody is there any more
                        await there.load.answers()
                        new.heal()
                        old.heal()

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
