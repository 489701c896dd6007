"""Where a broker may have the agent connect back to. No I/O.

An agent stands inside a private network. A broker that could name any host and port would
have a port scanner there. So it may name one place only, the one that it told when the
agent registered (an old broker: the first that it names), besides its own: the endpoint's
name and the address of its control port. Loopback and link-local addresses are only for
brokers that are on such an address themselves.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from client_agent.endpoints import Address, Endpoint
from whip_core.host_patterns import IPAddress, address_or_none, covers
from whip_core.names import host_port
from whip_core.settings import is_loopback


class Reach:
    """What one session allows its broker.

    `also` are allowed too: names, `*.names`, addresses and networks.
    """

    def __init__(self, endpoint: Endpoint, address: Address, also: Sequence[str] = ()) -> None:
        self._own = {endpoint.host, endpoint.tls_name, address.ip}
        self._is_local = _is_local(address.ip)
        self._also = also
        self._told: tuple[str, int] | None = None

    def tell(self, host: str, port: int) -> None:
        """The broker has said where reverse connections go."""
        self._told = host, port

    def is_own(self, host: str) -> bool:
        """Whether `host` is one that the agent itself was started with, or found behind it."""
        return _normal(host) in self._own or any(_matches(each, host) for each in self._also)

    def refusal(self, host: str, port: int) -> str | None:
        """Why there will be no connection to `host:port`; None if there may be one."""
        if not host or not 1 <= port <= 65535:
            return f"{host_port(host, port)} is not a place to connect to"
        if self.is_own(host):
            return None
        if _is_local(host) and not self._is_local:
            return (
                f"{host} is a loopback or link-local address, and the broker is elsewhere; "
                "is its --whip-external-tcp-address right?"
            )
        if self._told is None:
            self._told = host, port
        if (host, port) != self._told:
            return f"{host_port(host, port)} is not where this broker said that it listens"
        return None

    def neighbour_refusal(self, host: str, port: int) -> str | None:
        """The same for a place that is another broker's, for which this one vouches.

        Brokers of one fabric are siblings: their names lie below the endpoint's, or beside
        it (never by what the broker told, which may be any name of the private network).
        Anything else is for the agent's operator to allow.
        """
        refusal = self.refusal(host, port)
        if refusal is None or not host or not 1 <= port <= 65535:
            return refusal
        if _is_local(host):
            return None if self._is_local else refusal
        names = {each for each in self._own if _address(each) is None}
        parents = names | {name.partition(".")[2] for name in names}
        parent = _normal(host).partition(".")[2]
        if _address(host) is None and "." in parent and parent in parents:
            return None
        return f"{host} is not a sibling of this broker; --reverse-host={host} would allow it"


def _matches(pattern: str, host: str) -> bool:
    address = _address(host)
    if address is None:
        return covers([pattern], host)
    try:
        return address in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False


def _address(host: str) -> IPAddress | None:
    """A trailing dot makes it no name: some resolvers look past it."""
    return address_or_none(_normal(host))


def _is_local(host: str) -> bool:
    address = _address(host)
    if address is None:
        return is_loopback(host) or _normal(host).endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or address.is_link_local or address.is_unspecified


def _normal(host: str) -> str:
    return host.strip("[]").partition("%")[0].lower().removesuffix(".")
