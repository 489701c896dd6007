"""The proxy that the agent's connections go out through, where there is no other way out."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from whip_core.errors import SettingsError
from whip_core.names import host_port
from whip_core.settings import is_loopback

DEFAULT_PORTS = {"http": 3128, "socks5": 1080, "socks5h": 1080}
"""Squid's customary port, and that of SOCKS (RFC 1928)."""


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """An HTTP proxy (CONNECT) or a SOCKS5 one; names are looked up there, not here.

    `bypass` are the entries of NO_PROXY. `spares_loopback`: this machine is reached directly.
    """

    scheme: str
    host: str
    port: int
    login: tuple[str, str] | None = field(default=None, repr=False)
    bypass: tuple[str, ...] = ()
    spares_loopback: bool = False

    @classmethod
    def parse(
        cls, url: str, source: str, no_proxy: str = "", *, spares_loopback: bool = False
    ) -> EgressProxy:
        """Read `http://[user:password@]host[:port]` or `socks5://…`; http without a scheme.

        Raises `SettingsError` that begins with `source` and never shows the password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise SettingsError(f"{source} is not a proxy's URL: {error}") from error
        if parts.scheme not in DEFAULT_PORTS:
            raise SettingsError(
                f"{source} begins with {parts.scheme}://, but only http:// (CONNECT) and "
                "socks5:// proxies are supported; what goes through them is encrypted anyway"
            )
        if not host or parts.path.strip("/") or parts.query:
            raise SettingsError(
                f"{source} is not a proxy's URL: write http://user:password@host:port"
            )
        login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        return cls(
            scheme=parts.scheme.removesuffix("h"),
            host=host,
            port=port if port is not None else DEFAULT_PORTS[parts.scheme],
            login=login,
            bypass=tuple(entry for text in no_proxy.split(",") if (entry := text.strip().lower())),
            spares_loopback=spares_loopback,
        )

    def __str__(self) -> str:
        return f"{self.scheme}://{host_port(self.host, self.port)}"

    def carries(self, host: str) -> bool:
        """Whether connections to `host` go through the proxy."""
        name = host.strip("[]").partition("%")[0].lower().removesuffix(".")
        if self.spares_loopback and is_loopback(name):
            return False
        return not any(_matches(entry, name) for entry in self.bypass)


def egress_of(given: str | None, environment: Mapping[str, str]) -> EgressProxy | None:
    """The proxy of --egress-proxy, else of HTTPS_PROXY; an empty text means none.

    NO_PROXY says what goes directly. Where nobody asked for whip's sake, loopback does too.
    """
    no_proxy = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if given is not None:
        return EgressProxy.parse(given, "--egress-proxy", no_proxy) if given else None
    for name in ("HTTPS_PROXY", "https_proxy"):
        if url := environment.get(name):
            source = f"{name} in the environment"
            return EgressProxy.parse(url, source, no_proxy, spares_loopback=True)
    return None


def _matches(entry: str, name: str) -> bool:
    """An entry of NO_PROXY: `*`, an address, a network, or a name, which covers those below."""
    if entry == "*":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        domain = entry.removeprefix("*").removeprefix(".").removesuffix(".")
        return name == domain or name.endswith("." + domain)
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except (ValueError, TypeError):
        return False
