"""Host names, `*.` patterns of them and literal addresses, in certificates and options."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from whip_core.names import MAX_NAME_LENGTH, AgentName, normalize

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def covers(patterns: Iterable[str], name: str) -> bool:
    """Whether one of `patterns` is `name`, or is `*.rest` and `name` is one label and rest.

    Only a whole leftmost label may be a wildcard, and it stands for exactly one label.
    Case, a trailing dot and IDNA forms do not matter. What cannot be a host name is not
    covered, and a malformed pattern covers nothing.
    """
    try:
        wanted = normalize(name)
    except ValueError:
        return False
    accepted = {wanted, "*." + wanted.partition(".")[2]}
    return any(pattern_or_none(pattern) in accepted for pattern in patterns)


def covers_agent(patterns: Iterable[str], name: AgentName) -> bool:
    """Whether one of `patterns` is the agent's full name, or `*.` and its domain.

    Unlike in `covers`, a wildcard also says which domain it is for: `*.a.b.c` is good for
    agents of `a.b.c`, and not for `x.a.b` in `c`, whom dials of all of `c` may find.
    """
    accepted = {name.full}
    if "." not in name.hostname:
        accepted.add("*." + name.domain)
    return any(pattern_or_none(pattern) in accepted for pattern in patterns)


def dns_pattern(text: str) -> str:
    """The normal form of a host name or of `*.` and a host name.

    Raises `ValueError` for anything else, IP addresses among it.
    """
    head, _, rest = text.partition(".")
    pattern = "*." + normalize(rest) if head == "*" and rest else normalize(text)
    if len(pattern) > MAX_NAME_LENGTH:
        raise ValueError(f"{text[:80]!r} is longer than {MAX_NAME_LENGTH} characters")
    if address_or_none(pattern) is not None:
        raise ValueError(f"{text!r} is an IP address and not a host name")
    return pattern


def literal_address(text: str) -> IPAddress:
    """An IPv4 or IPv6 address; brackets and a zone (`%eth0`) are left aside.

    Raises `ValueError` for anything else.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError as error:
        raise ValueError(f"{text[:80]!r} is not an IP address") from error


def pattern_or_none(text: str) -> str | None:
    """`dns_pattern`, or None for what is none."""
    try:
        return dns_pattern(text)
    except ValueError:
        return None


def address_or_none(host: str) -> IPAddress | None:
    """`literal_address`, or None for what is none."""
    try:
        return literal_address(host)
    except ValueError:
        return None
