"""Names, ports and labels: their normal forms and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whip_core.names import (
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    AgentName,
    Target,
    check_labels,
    check_port,
    close_matches,
    host_port,
    is_within,
    normalize,
)


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("instance1.testdom", "instance1.testdom"),
        ("Instance1.TestDom.", "instance1.testdom"),
        (" instance1 ", "instance1"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("straße.example", "strasse.example"),
        ("instance。testdom", "instance.testdom"),
        ("my_service.test-dom", "my_service.test-dom"),
        ("127.0.0.1", "127.0.0.1"),
        ("a" * 63 + ".x", "a" * 63 + ".x"),
    ],
)
def test_a_name_has_one_form(name: str, normal: str) -> None:
    assert normalize(name) == normal
    assert normalize(normal) == normal


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "-a",
        "a-",
        "a b",
        "a/b",
        "a:80",
        "*.testdom",
        "a\n.testdom",
        "a\0",
        "[::1]",
        "ü" * 200,
        "\udcff",
    ],
)
def test_what_cannot_be_a_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        normalize(name)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_a_normal_form_that_stays_or_is_refused(text: str) -> None:
    try:
        normal = normalize(text)
    except ValueError:
        return
    assert normalize(normal) == normal
    assert normal.isascii()
    assert normal == normal.lower()


def test_an_agents_name_is_both_its_parts() -> None:
    name = AgentName.parse("Instance1", "TestDom.")
    assert (name.hostname, name.domain, name.full, str(name)) == (
        "instance1",
        "testdom",
        "instance1.testdom",
        "instance1.testdom",
    )
    assert AgentName.parse("a.b", "c") != AgentName.parse("a", "b.c")


@pytest.mark.parametrize(("hostname", "domain"), [("", "d"), ("h", ""), ("a" * 60, "b." * 100)])
def test_an_agents_name_fits_into_a_dns_name(hostname: str, domain: str) -> None:
    with pytest.raises(ValueError, match="name"):
        AgentName.parse(hostname, domain)


def test_a_target_is_a_name_and_a_port() -> None:
    assert str(Target.parse("Instance1.testdom.", 443)) == "instance1.testdom:443"
    assert Target.parse("A", 1) == Target("a", 1)


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_is_between_1_and_65535(port: int) -> None:
    for check in (check_port, lambda port: Target.parse("a", port)):
        with pytest.raises(ValueError, match="not a port"):
            check(port)
    assert check_port(65_535) == 65_535


def test_labels_are_copied_and_bounded() -> None:
    labels = {"zone": "eu", "empty": ""}
    assert check_labels(labels) == labels
    assert check_labels(labels) is not labels
    full = {str(number): "x" * MAX_LABEL_LENGTH for number in range(MAX_LABELS)}
    assert check_labels(full) == full


@pytest.mark.parametrize(
    "labels",
    [
        {str(number): "" for number in range(MAX_LABELS + 1)},
        {"": "value"},
        {"x" * (MAX_LABEL_LENGTH + 1): ""},
        {"key": "x" * (MAX_LABEL_LENGTH + 1)},
    ],
)
def test_labels_past_the_bounds_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="label"):
        check_labels(labels)


def test_a_name_is_within_a_domain_by_whole_labels() -> None:
    assert is_within("testdom", ["testdom"])
    assert is_within("a.b.testdom", ["example", "testdom"])
    assert not is_within("nottestdom", ["testdom"])
    assert not is_within("testdom", ["a.testdom"])
    assert not is_within("testdom", [])


def test_close_matches_are_few_and_the_closest_is_first() -> None:
    known = [f"instance{number}.testdom" for number in range(9)] + ["elsewhere.example"]
    close = close_matches("instanc3.testdom", known)
    assert close[0] == "instance3.testdom"
    assert len(close) == 3
    assert close_matches("zzz", known) == []


def test_an_ipv6_address_has_brackets_before_a_port() -> None:
    assert host_port("::1", 80) == host_port("[::1]", 80) == "[::1]:80"
    assert host_port("127.0.0.1", 80) == "127.0.0.1:80"
    assert host_port("a.testdom", 80) == "a.testdom:80"
