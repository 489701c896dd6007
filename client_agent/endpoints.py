"""What the agent is told to connect to: an ENDPOINT argument, and an address behind it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from whip_core.errors import SettingsError
from whip_core.names import check_port, host_port, normalize

DEFAULT_PORT = 50051
"""gRPC's customary port, and the default of a broker's --whip-grpc-listen-port."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """One place where a broker may listen: a literal IP (no brackets) and a TCP port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return host_port(self.ip, self.port)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where brokers are found: a name or literal IP with a port, or a DNS service (`srv`).

    `host` is normalized and has no brackets. A service's `host` is the whole name
    (`_whip._tcp.example.com`) and its `port` 0, because its records name the ports.
    """

    host: str
    port: int
    srv: bool = False

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `host`, `host:port`, `[::1]:port`, `dns:///host:port` or `srv:_whip._tcp.domain`.

        A name that starts with `_` is a service without the `srv:` too. Raises
        `SettingsError`, one line that says what to write instead.
        """
        rest = text.strip()
        service = rest.lower().startswith("srv:")
        if service:
            rest = rest[len("srv:") :]
        elif rest.lower().startswith("dns:"):
            rest = _without_dns_scheme(text, rest)
        if "/" in rest:
            raise _wrong(text, "it is not a URL: leave out the scheme and the path")
        if service or rest.startswith("_"):
            return cls(_service_name(text, rest), 0, srv=True)
        host, port = _split_port(text, rest)
        return cls(_host(text, host), port)

    @property
    def is_literal(self) -> bool:
        """Whether `host` is an IP address, so that there is nothing to look up."""
        return not self.srv and _literal(self.host) is not None

    @property
    def tls_name(self) -> str:
        """The name, or literal IP, that a broker's certificate must prove.

        It is the endpoint's own, never one that DNS gave: whoever can forge a record must
        not be able to choose whom we trust. So for a service it is the service's domain
        (RFC 6125 §6.2.1), `example.com` for `_whip._tcp.example.com`, on every target.
        """
        if self.srv:
            return self.host.split(".", 2)[2]
        # A scope says which of our interfaces to use; no certificate names it.
        return self.host.partition("%")[0]

    def __str__(self) -> str:
        return f"srv:{self.host}" if self.srv else host_port(self.host, self.port)


def _without_dns_scheme(text: str, rest: str) -> str:
    """gRPC's own way to write a target, `dns:[//authority/]host[:port]`."""
    rest = rest[len("dns:") :]
    if not rest.startswith("//"):
        return rest
    authority, _, host = rest[2:].partition("/")
    if authority:
        raise _wrong(text, "a DNS server cannot be chosen here: use three slashes, dns:///")
    return host


def _service_name(text: str, name: str) -> str:
    if ":" in name:
        raise _wrong(text, "a service's DNS records name its ports: leave out the port")
    host = _normalized(text, name)
    labels = host.split(".")
    if len(labels) < 3 or not (labels[0].startswith("_") and labels[1].startswith("_")):
        raise _wrong(text, "a DNS service is written as _whip._tcp.example.com")
    return host


def _split_port(text: str, rest: str) -> tuple[str, int]:
    if rest.startswith("["):
        host, bracket, after = rest[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise _wrong(text, f"an IPv6 address is written as [::1] or [::1]:{DEFAULT_PORT}")
        if ":" not in host:
            raise _wrong(text, "only an IPv6 address has brackets")
        colon, port = after[:1], after[1:]
    else:
        host, colon, port = rest.partition(":")
        if ":" in port:
            raise _wrong(text, f"an IPv6 address has brackets: [::1] or [::1]:{DEFAULT_PORT}")
    if not colon:
        return host, DEFAULT_PORT
    try:
        if not (port.isascii() and port.isdigit() and len(port) <= len("65535")):
            raise ValueError(f"{port[:20]!r} is not a port (1 to 65535)")
        return host, check_port(int(port))
    except ValueError as error:
        raise _wrong(text, str(error)) from error


def _host(text: str, host: str) -> str:
    address = _literal(host)
    if address is not None:
        return str(address)
    if ":" in host:
        raise _wrong(text, f"{host[:80]!r} is not an IPv6 address")
    name = _normalized(text, host)
    if name.rpartition(".")[2].isdigit():
        raise _wrong(text, f"{name!r} is neither an IPv4 address nor a name")
    return name


def _normalized(text: str, host: str) -> str:
    try:
        return normalize(host)
    except ValueError as error:
        raise _wrong(text, str(error)) from error


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _wrong(text: str, why: str) -> SettingsError:
    return SettingsError(
        f"{text[:80]!r} is not an endpoint ({why}); "
        f"write a broker's host:port, such as broker.example.com:{DEFAULT_PORT}"
    )
