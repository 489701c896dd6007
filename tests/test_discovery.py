"""Following an endpoint's addresses, against a real DNS server whose answers change."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from client_agent import discovery as discovery_module
from client_agent.discovery import (
    LOCAL_TTL,
    LOOKUPS_AT_ONCE,
    MAX_TTL,
    MIN_TTL,
    RETRY_BOUND,
    Discovery,
    Resolvers,
    ask_system,
)
from client_agent.endpoints import Address, Endpoint
from dns_server import DNSServer, Mood
from tunnel import run

PATIENCE = 30.0
"""Seconds: an event that has not come by then never will."""
BROKER = Endpoint("broker.test", 50051)
SERVICE = Endpoint("_whip._tcp.test", 0, srv=True)


def at(*ips: str, port: int = 50051) -> frozenset[Address]:
    return frozenset(Address(ip, port) for ip in ips)


async def system_knows_nothing(host: str) -> frozenset[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Watch:
    """A discovery under observation. Its pauses last until `round` ends them."""

    def __init__(self, endpoint: Endpoint, resolvers: Resolvers, *, quiet: bool = False) -> None:
        self.discovery = Discovery(endpoint, resolvers, sleep=self._pause, quiet=quiet)
        self.pause = 0.0
        """Seconds that the discovery wants to wait now."""
        self._news: list[frozenset[Address]] = []
        self._asleep = asyncio.Event()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        async with aclosing(self.discovery.watch()) as changes:
            async for addresses in changes:
                self._news.append(addresses)

    async def _pause(self, seconds: float) -> None:
        self.pause = seconds
        self._wake.clear()
        self._asleep.set()
        await self._wake.wait()

    async def round(self) -> frozenset[Address] | None:
        """Let the next lookup happen: what it changed, or None if it changed nothing."""
        self._wake.set()
        await asyncio.wait_for(self._asleep.wait(), PATIENCE)
        self._asleep.clear()
        assert len(self._news) <= 1
        return self._news.pop() if self._news else None


@asynccontextmanager
async def watching(
    endpoint: Endpoint, resolvers: Resolvers, *, quiet: bool = False
) -> AsyncIterator[Watch]:
    watch = Watch(endpoint, resolvers, quiet=quiet)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch.run(), name=f"watch {endpoint}")
        try:
            yield watch
        finally:
            task.cancel()


def resolvers_at(
    server: DNSServer,
    *,
    timeout: float = PATIENCE,
    hosts_file: Path = Path("/nonexistent"),
    ask_system: Callable[[str], Awaitable[frozenset[str]]] = system_knows_nothing,
) -> Resolvers:
    return Resolvers(
        nameservers=["127.0.0.1"],
        nameserver_port=server.port,
        hosts_file=hosts_file,
        ask_system=ask_system,
        timeout=timeout,
    )


def with_dns(test: Callable[[DNSServer], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        async with DNSServer() as server:
            await test(server)

    run(main())
    gc.collect()  # a socket left open is a warning, hence a failure, now


# Names in DNS


def test_all_a_and_aaaa_records_are_found_together() -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1", "10.0.0.2")
        server.set("broker.test", "AAAA", "2001:db8::1")
        async with watching(BROKER, resolvers_at(server)) as watch:
            assert await watch.round() == at("10.0.0.1", "10.0.0.2", "2001:db8::1")

    with_dns(test)


def test_records_that_come_and_go_are_seen_at_the_next_lookup() -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1")
        async with watching(BROKER, resolvers_at(server)) as watch:
            await watch.round()

            server.set("broker.test", "A", "10.0.0.1", "10.0.0.2")
            assert await watch.round() == at("10.0.0.1", "10.0.0.2")

            server.set("broker.test", "A", "10.0.0.2")
            assert await watch.round() == at("10.0.0.2")

            server.set("broker.test", "AAAA", "2001:db8::1")
            assert await watch.round() == at("10.0.0.2", "2001:db8::1")

            server.set("broker.test", "A")
            assert await watch.round() == at("2001:db8::1")

    with_dns(test)


def test_the_same_answer_is_told_once_whatever_its_order() -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1", "10.0.0.2")
        async with watching(BROKER, resolvers_at(server)) as watch:
            await watch.round()
            server.set("broker.test", "A", "10.0.0.2", "10.0.0.1")

            assert await watch.round() is None

    with_dns(test)


@pytest.mark.parametrize(
    ("a_ttl", "aaaa_ttl", "pause"),
    [(20, 60, 20), (60, 7, 7), (0, 60, MIN_TTL), (86_400, 86_400, MAX_TTL)],
)
def test_the_smallest_ttl_within_bounds_says_when_to_ask_again(
    a_ttl: int, aaaa_ttl: int, pause: float
) -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1", ttl=a_ttl)
        server.set("broker.test", "AAAA", "2001:db8::1", ttl=aaaa_ttl)
        async with watching(BROKER, resolvers_at(server)) as watch:
            await watch.round()

            assert watch.pause == pause

    with_dns(test)


def test_a_family_without_records_is_asked_for_again_when_dns_says_so() -> None:
    async def test(server: DNSServer) -> None:
        server.negative_ttl = 9
        server.set("broker.test", "A", "10.0.0.1", ttl=60)
        async with watching(BROKER, resolvers_at(server)) as watch:
            await watch.round()

            assert watch.pause == 9

    with_dns(test)


def test_a_cname_is_followed_and_its_ttl_counts() -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "CNAME", "real.test.", ttl=5)
        server.set("real.test", "A", "10.0.0.1", ttl=60)
        async with watching(BROKER, resolvers_at(server)) as watch:
            assert await watch.round() == at("10.0.0.1")
            assert watch.pause == 5

    with_dns(test)


def test_a_name_with_a_dot_is_asked_for_as_it_is_written(tmp_path: Path) -> None:
    async def test(server: DNSServer) -> None:
        conf = tmp_path / "resolv.conf"
        conf.write_text("nameserver 127.0.0.1\nsearch corp.test\noptions ndots:5\n")
        server.set("broker.test.corp.test", "A", "10.6.6.6")
        resolvers = Resolvers(
            resolv_conf=conf,
            nameserver_port=server.port,
            hosts_file=tmp_path / "none",
            ask_system=system_knows_nothing,
        )
        async with watching(BROKER, resolvers) as watch:
            assert await watch.round() is None
        assert set(server.questions) == {"broker.test A", "broker.test AAAA"}

    with_dns(test)


# Failures


@pytest.mark.parametrize("mood", ["NXDOMAIN", "SERVFAIL", "EMPTY", "SILENCE"])
def test_a_resolver_that_fails_changes_nothing_and_is_asked_again_soon(mood: Mood) -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1")
        server.set("broker.test", "AAAA", "2001:db8::1")
        async with watching(BROKER, resolvers_at(server, timeout=1.0)) as watch:
            await watch.round()
            server.fail("broker.test", "A", mood)
            server.fail("broker.test", "AAAA", mood)

            assert await watch.round() is None
            assert watch.pause <= RETRY_BOUND

            server.heal()
            assert await watch.round() is None
            assert watch.pause == 60

    with_dns(test)


def test_a_server_that_is_not_there_is_asked_until_it_is() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        resolvers = Resolvers(
            nameservers=["127.0.0.1"],
            nameserver_port=port,
            hosts_file=Path("/nonexistent"),
            ask_system=system_knows_nothing,
            timeout=0.2,
        )
        async with watching(BROKER, resolvers) as watch:
            assert await watch.round() is None
            assert await watch.round() is None
            assert watch.pause <= RETRY_BOUND

    run(main())


def test_a_name_that_appears_late_is_found() -> None:
    async def test(server: DNSServer) -> None:
        async with watching(BROKER, resolvers_at(server)) as watch:
            assert await watch.round() is None
            assert await watch.round() is None

            server.set("broker.test", "A", "10.0.0.1")
            assert await watch.round() == at("10.0.0.1")

    with_dns(test)


def test_retries_stay_frequent_however_long_the_resolver_fails() -> None:
    async def test(server: DNSServer) -> None:
        async with watching(BROKER, resolvers_at(server)) as watch:
            for _ in range(40):
                await watch.round()
                assert 0 <= watch.pause <= RETRY_BOUND

    with_dns(test)


@pytest.mark.parametrize("mood", ["NXDOMAIN", "SERVFAIL"])
@pytest.mark.parametrize(("failing", "working"), [("A", "AAAA"), ("AAAA", "A")])
def test_a_family_that_fails_alone_keeps_what_was_known_of_it(
    failing: str, working: str, mood: Mood
) -> None:
    values = {"A": ("10.0.0.1", "10.0.0.2"), "AAAA": ("2001:db8::1", "2001:db8::2")}

    async def test(server: DNSServer) -> None:
        server.set("broker.test", failing, values[failing][0])
        server.set("broker.test", working, values[working][0], ttl=300)
        async with watching(BROKER, resolvers_at(server)) as watch:
            await watch.round()

            server.fail("broker.test", failing, mood)
            server.set("broker.test", working, values[working][1], ttl=300)
            assert await watch.round() == at(values[failing][0], values[working][1])
            assert watch.pause < 300, "the failed question is not left for the other's TTL"

            server.set("broker.test", failing, values[failing][1])
            assert await watch.round() == at(values[failing][1], values[working][1])

    with_dns(test)


def test_a_family_that_is_never_answered_does_not_hold_up_the_other() -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1")
        server.fail("broker.test", "AAAA", "SILENCE")
        async with watching(BROKER, resolvers_at(server, timeout=10 * PATIENCE)) as watch:
            assert await watch.round() == at("10.0.0.1")

    with_dns(test)


def test_a_family_without_records_does_not_cut_short_the_wait_for_the_other() -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1")
        server.fail("broker.test", "A", "SILENCE")
        async with watching(BROKER, resolvers_at(server)) as watch:
            await asyncio.wait_for(server.asked("broker.test A"), PATIENCE)
            server.heal()  # so the next try, after the grace of a family, is answered

            assert await watch.round() == at("10.0.0.1")

    with_dns(test)


def test_no_records_of_one_family_and_a_failure_of_the_other_change_nothing() -> None:
    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1")
        async with watching(BROKER, resolvers_at(server)) as watch:
            await watch.round()
            server.fail("broker.test", "A", "EMPTY")
            server.fail("broker.test", "AAAA", "SERVFAIL")

            assert await watch.round() is None
            server.set("broker.test", "AAAA", "2001:db8::1")
            server.fail("broker.test", "A", "SERVFAIL")
            assert await watch.round() == at("10.0.0.1", "2001:db8::1")

    with_dns(test)


def test_a_failure_is_logged_when_it_begins_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=discovery_module.__name__)

    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1")
        async with watching(BROKER, resolvers_at(server)) as watch:
            await watch.round()
            for mood in ("SERVFAIL", "NXDOMAIN", "SERVFAIL"):
                server.fail("broker.test", "A", mood)
                server.fail("broker.test", "AAAA", mood)
                await watch.round()
            assert "broker.test" in repr(watch.discovery)
            assert "failing" in repr(watch.discovery)
            server.heal()
            await watch.round()
            await watch.round()

    with_dns(test)
    begun, over = (record for record in caplog.records if record.name == discovery_module.__name__)
    assert begun.levelno == logging.WARNING
    assert "SERVFAIL" in begun.getMessage()
    assert "continuing with 1 known" in begun.getMessage()
    assert over.levelno == logging.INFO
    assert "looking up broker.test:50051 works again: 1 found" in over.getMessage()


def test_a_name_that_nobody_knows_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: DNSServer) -> None:
        async with watching(BROKER, resolvers_at(server)) as watch:
            for _ in range(3):
                await watch.round()

    with_dns(test)
    assert caplog.messages == [
        "looking up broker.test:50051: DNS knows no broker.test; trying again"
    ]


def test_a_quiet_discovery_leaves_its_trouble_to_its_owner(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(server: DNSServer) -> None:
        async with watching(BROKER, resolvers_at(server), quiet=True) as watch:
            await watch.round()
            assert watch.discovery.trouble == "DNS knows no broker.test"
            server.set("broker.test", "A", "10.0.0.1")
            assert await watch.round() == at("10.0.0.1")
            assert watch.discovery.trouble == ""

    with_dns(test)
    assert caplog.messages == []


# Services


def test_every_target_of_a_service_is_found_on_its_own_port_whatever_its_priority() -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 5 50051 one.test.", "9 0 50052 two.test.")
        server.set("one.test", "A", "10.0.0.1")
        server.set("two.test", "A", "10.0.0.2")
        server.set("two.test", "AAAA", "2001:db8::2")
        async with watching(SERVICE, resolvers_at(server)) as watch:
            assert await watch.round() == at("10.0.0.1") | at("10.0.0.2", "2001:db8::2", port=50052)

    with_dns(test)


def test_targets_that_come_and_go_and_move_are_followed() -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.")
        server.set("one.test", "A", "10.0.0.1")
        server.set("two.test", "A", "10.0.0.2")
        async with watching(SERVICE, resolvers_at(server)) as watch:
            await watch.round()

            server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.", "0 0 50051 two.test.")
            assert await watch.round() == at("10.0.0.1", "10.0.0.2")

            server.set("two.test", "A", "10.0.0.3")
            assert await watch.round() == at("10.0.0.1", "10.0.0.3")

            server.set("_whip._tcp.test", "SRV", "0 0 50052 two.test.")
            assert await watch.round() == at("10.0.0.3", port=50052)

    with_dns(test)


def test_the_smallest_ttl_of_a_service_and_its_targets_counts() -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.", ttl=30)
        server.set("one.test", "A", "10.0.0.1", ttl=6)
        async with watching(SERVICE, resolvers_at(server)) as watch:
            await watch.round()
            assert watch.pause == 6

            server.set("one.test", "A", "10.0.0.1", ttl=60)
            await watch.round()
            assert watch.pause == 30

    with_dns(test)


def test_a_target_that_cannot_be_looked_up_does_not_hide_the_others_or_lose_its_address() -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.", "0 0 50051 two.test.")
        server.set("one.test", "A", "10.0.0.1")
        server.set("two.test", "A", "10.0.0.2")
        async with watching(SERVICE, resolvers_at(server)) as watch:
            await watch.round()
            server.fail("one.test", "A", "SERVFAIL")
            server.fail("one.test", "AAAA", "SERVFAIL")
            server.set("two.test", "A", "10.0.0.3")

            assert await watch.round() == at("10.0.0.1", "10.0.0.3")

    with_dns(test)


@pytest.mark.parametrize("mood", ["NXDOMAIN", "SERVFAIL", "EMPTY"])
def test_a_service_that_cannot_be_looked_up_keeps_its_targets_and_follows_them(mood: Mood) -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.")
        server.set("one.test", "A", "10.0.0.1")
        async with watching(SERVICE, resolvers_at(server)) as watch:
            await watch.round()
            server.fail("_whip._tcp.test", "SRV", mood)
            assert await watch.round() is None

            server.set("one.test", "A", "10.0.0.2")
            assert await watch.round() == at("10.0.0.2")

    with_dns(test)


def test_a_service_that_says_it_is_not_available_changes_nothing() -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.")
        server.set("one.test", "A", "10.0.0.1")
        async with watching(SERVICE, resolvers_at(server)) as watch:
            await watch.round()
            server.set("_whip._tcp.test", "SRV", "0 0 0 .")
            assert await watch.round() is None

            server.set("one.test", "A", "10.0.0.2")
            assert await watch.round() == at("10.0.0.2"), "its targets are still followed"

    with_dns(test)


def test_a_service_whose_new_targets_have_no_address_yet_changes_nothing_until_they_do() -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.")
        server.set("one.test", "A", "10.0.0.1")
        async with watching(SERVICE, resolvers_at(server)) as watch:
            await watch.round()
            server.set("_whip._tcp.test", "SRV", "0 0 50051 two.test.")
            assert await watch.round() is None

            server.set("two.test", "A", "10.0.0.2")
            assert await watch.round() == at("10.0.0.2")

    with_dns(test)


def test_a_service_whose_targets_have_no_address_yet_is_asked_for_again_soon() -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 one.test.", ttl=300)
        async with watching(SERVICE, resolvers_at(server)) as watch:
            for _ in range(20):
                assert await watch.round() is None
                assert watch.pause <= RETRY_BOUND

    with_dns(test)


def test_a_service_with_many_targets_looks_up_a_bounded_number_at_a_time() -> None:
    count = LOOKUPS_AT_ONCE + 5
    running = most = 0

    async def test(server: DNSServer) -> None:
        enough = asyncio.Event()

        async def ask(host: str) -> frozenset[str]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == LOOKUPS_AT_ONCE:
                # Not at once: those that are about to ask come first, and are counted.
                asyncio.get_running_loop().call_soon(enough.set)
            await enough.wait()
            running -= 1
            return frozenset({host.replace("ip", "10.0.0.")})

        server.set("_whip._tcp.test", "SRV", *(f"0 0 50051 ip{n}." for n in range(count)))
        async with watching(SERVICE, resolvers_at(server, ask_system=ask)) as watch:
            assert await watch.round() == at(*(f"10.0.0.{n}" for n in range(count)))

    with_dns(test)
    assert most == LOOKUPS_AT_ONCE


def test_a_service_without_a_dns_server_is_said_to_need_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with watching(SERVICE, Resolvers(resolv_conf=tmp_path / "none")) as watch:
            assert await watch.round() is None

    run(main())
    assert "_whip._tcp.test needs DNS, and" in caplog.text


# Names that DNS is not asked for, or does not know


def test_the_hosts_file_wins_over_dns_and_is_read_again(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "# comment\n\n10.1.1.1 other.test # broker.test\nnonsense broker.test\n"
        "10.0.0.7\tBROKER.test. alias\n2001:DB8:0::7 x broker.test # y\n"
    )

    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.6.6.6")
        async with watching(BROKER, resolvers_at(server, hosts_file=hosts)) as watch:
            assert await watch.round() == at("10.0.0.7", "2001:db8::7")
            assert watch.pause == LOCAL_TTL
            assert server.questions == []

            hosts.write_text("10.0.0.8 broker.test\n")
            assert await watch.round() == at("10.0.0.8")

            hosts.unlink()
            assert await watch.round() == at("10.6.6.6")

    with_dns(test)


@pytest.mark.parametrize("host", ["localhost", "broker.localhost"])
def test_localhost_is_loopback_and_never_asked_of_dns(host: str) -> None:
    async def test(server: DNSServer) -> None:
        server.set(host, "A", "10.6.6.6")
        async with watching(Endpoint(host, 50051), resolvers_at(server)) as watch:
            assert await watch.round() == at("127.0.0.1", "::1")
        assert server.questions == []

    with_dns(test)


def test_localhost_is_what_the_hosts_file_says(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")

    async def test(server: DNSServer) -> None:
        resolvers = resolvers_at(server, hosts_file=hosts)
        async with watching(Endpoint("localhost", 1), resolvers) as watch:
            assert await watch.round() == at("127.0.0.1", port=1)

    with_dns(test)


class System:
    """A system's resolver that knows what it was told."""

    def __init__(self, **known: str) -> None:
        self.known = known
        self.questions: list[str] = []

    async def ask(self, host: str) -> frozenset[str]:
        self.questions.append(host)
        ip = self.known.get(host.replace(".", "_"))
        return frozenset({ip}) if ip else await system_knows_nothing(host)


def test_a_single_label_is_asked_of_the_system_only_and_asked_again() -> None:
    system = System(broker="10.0.0.1")

    async def test(server: DNSServer) -> None:
        resolvers = resolvers_at(server, ask_system=system.ask)
        async with watching(Endpoint("broker", 50051), resolvers) as watch:
            assert await watch.round() == at("10.0.0.1")
            assert watch.pause == LOCAL_TTL

            system.known["broker"] = "10.0.0.2"
            assert await watch.round() == at("10.0.0.2")

            del system.known["broker"]
            assert await watch.round() is None
            assert watch.pause <= RETRY_BOUND
        assert server.questions == []

    with_dns(test)


@pytest.mark.parametrize("mood", ["NXDOMAIN", "SERVFAIL", "EMPTY", "SILENCE"])
def test_a_name_that_dns_does_not_know_is_asked_of_the_system(mood: Mood) -> None:
    system = System(broker_test="10.0.0.1")

    async def test(server: DNSServer) -> None:
        server.fail("broker.test", "A", mood)
        server.fail("broker.test", "AAAA", mood)
        resolvers = resolvers_at(server, ask_system=system.ask, timeout=1.0)
        async with watching(BROKER, resolvers) as watch:
            assert await watch.round() == at("10.0.0.1")

            server.set("broker.test", "A", "10.0.0.2")
            assert await watch.round() == at("10.0.0.2"), "DNS knows it now"

    with_dns(test)


def test_a_name_that_dns_has_answered_is_not_asked_of_the_system_when_dns_fails() -> None:
    system = System(broker_test="10.6.6.6")

    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.1")
        async with watching(BROKER, resolvers_at(server, ask_system=system.ask)) as watch:
            await watch.round()
            server.fail("broker.test", "A", "SERVFAIL")
            server.fail("broker.test", "AAAA", "SERVFAIL")

            assert await watch.round() is None
        assert system.questions == []

    with_dns(test)


@pytest.mark.parametrize("content", [None, b"", b"nameserver nonsense\n", b"\xff\xfe\n"])
def test_without_a_usable_resolv_conf_the_system_is_asked_until_there_is_one(
    content: bytes | None, tmp_path: Path
) -> None:
    conf = tmp_path / "resolv.conf"
    if content is not None:
        conf.write_bytes(content)
    system = System(broker_test="10.0.0.1")

    async def test(server: DNSServer) -> None:
        server.set("broker.test", "A", "10.0.0.2")
        resolvers = Resolvers(
            resolv_conf=conf,
            nameserver_port=server.port,
            hosts_file=tmp_path / "none",
            ask_system=system.ask,
        )
        async with watching(BROKER, resolvers) as watch:
            assert await watch.round() == at("10.0.0.1")

            conf.write_text("nameserver 127.0.0.1\n")
            assert await watch.round() == at("10.0.0.2")

    with_dns(test)


def test_the_systems_resolver_knows_localhost() -> None:
    assert run(ask_system("localhost")) & {"127.0.0.1", "::1"}


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_the_systems_resolver_fails_with_an_oserror(host: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        run(ask_system(host))


def test_a_system_resolver_that_hangs_holds_up_neither_cancellation_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, finish = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        started.set()
        finish.wait(PATIENCE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as scope:
                asyncio.get_running_loop().call_soon(scope.reschedule, 0)
                await ask_system("hangs")

    run(main())
    [thread] = (thread for thread in threading.enumerate() if thread.name == "resolve hangs")
    assert started.wait(PATIENCE)
    assert thread.daemon
    assert not finish.is_set()
    finish.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# Literal addresses, and the end


@pytest.mark.parametrize("ip", ["10.0.0.1", "::1"])
def test_a_literal_address_comes_once_and_nobody_is_asked(ip: str) -> None:
    async def test(server: DNSServer) -> None:
        endpoint = Endpoint(ip, 7)
        found = asyncio.Event()

        async def run() -> None:
            async for addresses in Discovery(endpoint, resolvers_at(server)).watch():
                assert addresses == at(ip, port=7)
                assert not found.is_set()
                found.set()
            raise AssertionError("it goes on for ever")

        async with asyncio.TaskGroup() as group:
            task = group.create_task(run())
            await asyncio.wait_for(found.wait(), PATIENCE)
            task.cancel()
        assert server.questions == []

    with_dns(test)


@pytest.mark.parametrize("endpoint", [BROKER, SERVICE])
def test_cancelling_in_the_middle_of_a_lookup_leaves_nothing_behind(endpoint: Endpoint) -> None:
    async def test(server: DNSServer) -> None:
        server.set("_whip._tcp.test", "SRV", "0 0 50051 broker.test.")
        server.fail("broker.test", "A", "SILENCE")
        server.fail("broker.test", "AAAA", "SILENCE")
        async with watching(endpoint, resolvers_at(server, timeout=10 * PATIENCE)):
            await asyncio.wait_for(server.asked("broker.test A"), PATIENCE)
            await asyncio.wait_for(server.asked("broker.test AAAA"), PATIENCE)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with_dns(test)
