"""Where a broker may have the agent connect back to: the rule, without I/O."""

from __future__ import annotations

import pytest

from client_agent.endpoints import Address, Endpoint
from client_agent.reach import Reach

ENDPOINT = Endpoint.parse("brokers.example:50051")
ADDRESS = Address("192.0.2.1", 50051)


def reach(ip: str = ADDRESS.ip, *also: str) -> Reach:
    return Reach(ENDPOINT, Address(ip, 50051), also)


@pytest.mark.parametrize("host", ["brokers.example", "BROKERS.example.", "192.0.2.1"])
def test_a_broker_may_name_its_endpoint_and_its_address_with_any_port(host: str) -> None:
    allowed = reach()
    allowed.tell("elsewhere.example", 8000)
    for port in (1, 65535):
        assert allowed.refusal(host, port) is None
    assert allowed.is_own(host)


def test_it_may_name_the_one_place_that_it_told() -> None:
    allowed = reach()
    allowed.tell("reverse.example", 8000)
    assert allowed.refusal("reverse.example", 8000) is None
    assert not allowed.is_own("reverse.example")
    for host, port in (("reverse.example", 8001), ("other.example", 8000), ("10.0.0.5", 22)):
        assert "is not where this broker said" in (allowed.refusal(host, port) or "")


def test_the_first_place_that_an_old_broker_names_is_its_only_one() -> None:
    allowed = reach()
    assert allowed.refusal("reverse.example", 8000) is None
    assert allowed.refusal("reverse.example", 8000) is None
    assert allowed.refusal("10.0.0.5", 22) is not None


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"),
        *("::ffff:127.0.0.1", "0.0.0.0", "169.254.169.254", "fe80::1%eth0"),
    ],
)
def test_this_machine_is_only_for_brokers_on_it(host: str) -> None:
    far, near = reach(), reach("127.0.0.1")
    far.tell(host, 8000)
    near.tell(host, 8000)
    assert "loopback or link-local" in (far.refusal(host, 8000) or "")
    assert near.refusal(host, 8000) is None


@pytest.mark.parametrize(("host", "port"), [("", 80), ("a.example", 0), ("a.example", 65536)])
def test_what_is_no_place_is_refused(host: str, port: int) -> None:
    assert "is not a place to connect to" in (reach().refusal(host, port) or "")


def test_the_operator_may_allow_more() -> None:
    allowed = reach(ADDRESS.ip, "*.brokers.example")
    allowed.tell("reverse.example", 8000)
    assert allowed.refusal("b7.brokers.example", 8000) is None
    assert allowed.refusal("b7.eu.brokers.example", 8000) is not None


@pytest.mark.parametrize(
    ("pattern", "host", "allowed"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3/32", "10.1.2.3", True),
        ("2001:db8::/32", "[2001:db8::1]", True),
        ("10.0.0.0/8", "10.example", False),
        ("10.0.0.0/8", "10.1.2.3.", True),
        ("*.1.2.3", "10.1.2.3", False),
        ("fe80::/10", "fe80::1%eth0", True),
    ],
)
def test_the_operator_may_allow_addresses_and_networks(
    pattern: str, host: str, allowed: bool
) -> None:
    reached = reach(ADDRESS.ip, pattern)
    reached.tell("reverse.example", 8000)
    assert (reached.refusal(host, 8000) is None) is allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("b7.brokers.eu.example", True),
        ("b7.eu.example", True),
        ("B7.EU.example.", True),
        ("b7.us.example", False),
        ("x.b7.eu.example", False),
        ("sibling.of.told.example", False),
        ("other.example", False),
        ("10.0.0.5", False),
        ("10.0.0.5.", False),
        ("[2001:db8::5]", False),
        ("localhost", False),
    ],
)
def test_another_broker_is_a_sibling_of_the_one_that_vouches_for_it(
    host: str, allowed: bool
) -> None:
    reached = Reach(Endpoint.parse("brokers.eu.example"), ADDRESS)
    reached.tell("told.of.told.example", 8000)
    assert (reached.neighbour_refusal(host, 9000) is None) is allowed
    assert reached.neighbour_refusal("told.of.told.example", 8000) is None
    assert reached.neighbour_refusal(host, 0) is not None


def test_names_of_one_label_have_no_siblings_and_local_brokers_have_local_ones() -> None:
    flat = Reach(Endpoint.parse("broker"), Address("192.0.2.1", 1))
    flat.tell("reverse.example", 8000)
    assert flat.neighbour_refusal("database.example", 8000) is not None
    near = reach("127.0.0.1")
    near.tell("localhost", 8000)
    assert near.neighbour_refusal("127.0.0.1", 9000) is None
