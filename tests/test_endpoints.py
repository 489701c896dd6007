"""ENDPOINT arguments: what each way of writing one means, and what the wrong ones are told."""

from __future__ import annotations

import pytest

from client_agent.endpoints import Address, Endpoint
from whip_core.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("broker.example.com:8443", Endpoint("broker.example.com", 8443)),
        ("broker.example.com", Endpoint("broker.example.com", 50051)),
        ("localhost", Endpoint("localhost", 50051)),
        ("my_broker:1", Endpoint("my_broker", 1)),
        ("10.0.0.1:65535", Endpoint("10.0.0.1", 65535)),
        ("10.0.0.1", Endpoint("10.0.0.1", 50051)),
        ("[::1]:8443", Endpoint("::1", 8443)),
        ("[::1]", Endpoint("::1", 50051)),
        ("[2001:DB8:0::1]", Endpoint("2001:db8::1", 50051)),
        ("[fe80::1%eth0]:8443", Endpoint("fe80::1%eth0", 8443)),
        ("dns:///broker.example.com:8443", Endpoint("broker.example.com", 8443)),
        ("dns:broker.example.com", Endpoint("broker.example.com", 50051)),
        ("dns:///[::1]:8443", Endpoint("::1", 8443)),
        ("srv:_whip._tcp.example.com", Endpoint("_whip._tcp.example.com", 0, srv=True)),
        ("_whip._tcp.example.com", Endpoint("_whip._tcp.example.com", 0, srv=True)),
        ("dns:///_whip._tcp.example.com", Endpoint("_whip._tcp.example.com", 0, srv=True)),
    ],
)
def test_each_way_of_writing_an_endpoint_is_understood(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint


def test_case_a_trailing_dot_spaces_and_the_idna_form_do_not_matter() -> None:
    assert Endpoint.parse(" Broker.Bücher.Example.:50051 ") == Endpoint.parse(
        "broker.xn--bcher-kva.example"
    )


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "is not a host name"),
        (":50051", "is not a host name"),
        ("broker.example.com:", "'' is not a port"),
        ("broker.example.com:http", "'http' is not a port"),
        ("broker.example.com:0", "0 is not a port"),
        ("broker.example.com:65536", "65536 is not a port"),
        ("broker.example.com:000000050051", "is not a port"),
        ("broker.example.com:٣", "is not a port"),
        ("::1", "an IPv6 address has brackets"),
        ("::1:50051", "an IPv6 address has brackets"),
        ("[::1", "is written as [::1]"),
        ("[::1]50051", "is written as [::1]"),
        ("[::g]:50051", "'::g' is not an IPv6 address"),
        ("[broker]:50051", "only an IPv6 address has brackets"),
        ("10.0.0.256", "neither an IPv4 address nor a name"),
        ("https://broker.example.com", "leave out the scheme"),
        ("broker.example.com/v1", "leave out the scheme and the path"),
        ("dns://1.1.1.1/broker.example.com", "use three slashes"),
        ("two words", "is not a host name"),
        ("user@broker.example.com", "is not a host name"),
        ("-broker.example.com", "is not a host name"),
        ("srv:broker.example.com", "written as _whip._tcp.example.com"),
        ("_whip.example.com", "written as _whip._tcp.example.com"),
        ("_whip._tcp", "written as _whip._tcp.example.com"),
        ("_whip._tcp.example.com:50051", "leave out the port"),
        ("x" * 5_000, "is not a host name"),
        ("broker\nexample", "is not a host name"),
    ],
)
def test_a_wrong_endpoint_is_told_in_one_short_line_what_to_write(text: str, advice: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Endpoint.parse(text)

    message = str(raised.value)
    assert advice in message
    assert "broker.example.com:50051" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("broker.example.com:8443", "broker.example.com"),
        ("10.0.0.1:8443", "10.0.0.1"),
        ("[::1]:8443", "::1"),
        ("[fe80::1%eth0]:8443", "fe80::1"),
        ("_whip._tcp.brokers.example.com", "brokers.example.com"),
    ],
)
def test_the_certificate_must_prove_the_endpoints_own_name(text: str, name: str) -> None:
    assert Endpoint.parse(text).tls_name == name


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("10.0.0.1", True),
        ("[::1]:1", True),
        ("[fe80::1%eth0]", True),
        ("localhost", False),
        ("_whip._tcp.example.com", False),
    ],
)
def test_only_an_ip_address_needs_no_lookup(text: str, literal: bool) -> None:
    assert Endpoint.parse(text).is_literal is literal


@pytest.mark.parametrize("text", ["broker:1", "[::1]:1", "10.0.0.1:1", "srv:_a._tcp.b"])
def test_what_an_endpoint_prints_can_be_given_as_an_argument_again(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


def test_an_address_prints_as_what_a_connection_takes() -> None:
    assert str(Address("10.0.0.1", 1)) == "10.0.0.1:1"
    assert str(Address("::1", 1)) == "[::1]:1"
