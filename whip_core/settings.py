"""Settings that both ends share, and the broker's."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from whip_core.dial_address import DialAddress
from whip_core.errors import SettingsError
from whip_core.limits import Limits

DIAL_TIMEOUT = 10.0
"""Seconds a whole dial may take, the waiting for an agent to appear not counted."""
DRAIN_TIMEOUT = 30.0
"""Seconds that streams have to finish when an agent or a broker is told to stop."""
PING_INTERVAL = 20.0
"""Seconds between two round-trip measurements of one agent."""
PING_TIMEOUT = 15.0
"""Seconds an agent may leave pings unanswered. It is looked at before each ping, so that a
dead path is noticed within two intervals."""
PROBE_TIMEOUT = 2.0
"""Seconds the holder of a name has to answer when another agent claims it."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds a peer on either port has for its TLS handshake, and an agent to register."""
PREAMBLE_TIMEOUT = 5.0
"""Seconds a peer on the reverse port has, once connected, to say who it is."""


class Role(Enum):
    """Whose files they are, and what a certificate has to be good for then."""

    BROKER = "broker"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files: our key, our certificate chain, the CA that peers must be from.

    `crl`, if given, holds a revocation list of each CA.
    """

    key: Path
    cert: Path
    ca: Path
    crl: Path | None = None

    @classmethod
    def of(
        cls, key: str | Path, cert: str | Path, ca: str | Path, crl: str | Path | None = None
    ) -> TLSFiles:
        return cls(
            Path(key).expanduser(),
            Path(cert).expanduser(),
            Path(ca).expanduser(),
            Path(crl).expanduser() if crl else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricSettings:
    """What joins a broker to others (`whip_core.fabric`).

    `url` says where, and by its scheme what it is; several are separated by commas. Only
    brokers of the same `cluster` hear each other. `credentials` is a file as NATS makes
    them; `ca`, and `key` and `cert` together, are PEM files for its TLS.
    """

    url: str
    cluster: str = "whip"
    credentials: Path | None = None
    ca: Path | None = None
    key: Path | None = None
    cert: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Everything a broker needs to start.

    `external_host` and `external_port` are what agents are told to connect back to (a
    port of None is the one the reverse listener got). `listen_host` None means all
    interfaces, IPv4 and IPv6, or loopback when `tls` is None. A listen port of 0 lets the
    system choose. `domains` are the names that belong to whip even while no agent has
    them: they never go anywhere else. `picker` is what --picker takes, and `policy` a
    TOML file that says who may reach what (docs/policy.md).

    `dial_listen` is where other processes may dial through this broker. In TCP that takes a
    certificate with one of the names in `dial_allow` (its holder dials as itself) or in
    `dial_trust` (its holder, a proxy, says for whom).

    With `relay`, streams to agents that cannot reach the broker that dials go by way of the
    one that holds them, if it has `relay` too: in both directions, for others and by others.
    """

    external_host: str = "localhost"
    external_port: int | None = None
    listen_host: str | None = None
    tcp_listen_port: int = 8000
    grpc_listen_port: int = 50051
    tls: TLSFiles | None = None
    allow_plaintext: bool = False
    domains: tuple[str, ...] = ()
    picker: str = "random"
    policy: Path | None = None
    outlier_ejection: bool = False
    dial_timeout: float = DIAL_TIMEOUT
    ping_interval: float = PING_INTERVAL
    ping_timeout: float = PING_TIMEOUT
    probe_timeout: float = PROBE_TIMEOUT
    handshake_timeout: float = HANDSHAKE_TIMEOUT
    preamble_timeout: float = PREAMBLE_TIMEOUT
    dial_listen: tuple[DialAddress, ...] = ()
    dial_allow: tuple[str, ...] = ()
    dial_trust: tuple[str, ...] = ()
    fabric: FabricSettings | None = None
    relay: bool = False
    drain_timeout: float = DRAIN_TIMEOUT
    audit_log: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.tls is None and self.listen_host is not None:
            require_plaintext_allowed("listen on", self.listen_host, self.allow_plaintext)

    @property
    def listen_hosts(self) -> tuple[str, ...]:
        """Addresses to bind, one listener each."""
        if self.listen_host is not None:
            return (self.listen_host,)
        return ("::", "0.0.0.0") if self.tls is not None else ("::1", "127.0.0.1")  # noqa: S104


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings:
    """What it takes to dial through a broker in another process.

    `tls` is for an `address` in TCP. `domains` belong to whip whatever that broker says.
    """

    address: DialAddress
    tls: TLSFiles | None = None
    domains: tuple[str, ...] = ()
    dial_timeout: float = DIAL_TIMEOUT
    drain_timeout: float = DRAIN_TIMEOUT

    @property
    def external_host(self) -> str:
        """Where the agents are, as far as it is known here."""
        return str(self.address)

    @property
    def external_port(self) -> int:
        return self.address.port


def is_loopback(host: str) -> bool:
    """Whether `host`, a literal address or localhost, cannot leave this machine."""
    name = host.strip("[]").partition("%")[0].lower().removesuffix(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def require_plaintext_allowed(verb: str, host: str, allowed: bool) -> None:
    """Plaintext is free on loopback; anywhere else somebody has to have asked for it."""
    if not allowed and not is_loopback(host):
        raise SettingsError(
            f"refusing to {verb} {host} without TLS: use --tls=true with certificates, "
            "or say --allow-plaintext if the network is trusted"
        )
