"""Names of instances and what is dialled: normal forms, bounds, close matches."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_NAME_LENGTH = 253
"""Octets of a full name, as in DNS (RFC 1035 §2.3.4)."""
MAX_LABELS = 32
MAX_LABEL_LENGTH = 255
"""Free-form labels are an operator's notes: enough for any scheme, little enough to keep."""
DEFAULT_PORTS = frozenset({80, 443})
"""Ports that a URL without one stands for; only these may fall to an agent's single port."""

_DNS_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def normalize(name: str) -> str:
    """The one form in which names are compared: A-labels, lower case, no trailing dot.

    Raises `ValueError` for what cannot be a host name.
    """
    text = name.strip().removesuffix(".")
    # Before it is encoded: that takes time in the square of the length. No form of a name
    # has more characters than its encoded one.
    if not text or len(text) > MAX_NAME_LENGTH:
        raise ValueError(f"{name[:80]!r} is not a host name (1 to {MAX_NAME_LENGTH} characters)")
    if not text.isascii():
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError(f"{name!r} is not a valid internationalized name: {error}") from error
    text = text.lower()
    if len(text) > MAX_NAME_LENGTH:
        raise ValueError(f"{name[:80]!r} is not a host name (1 to {MAX_NAME_LENGTH} characters)")
    for label in text.split("."):
        if not _DNS_LABEL.fullmatch(label):
            raise ValueError(
                f"{name[:80]!r} is not a host name: {label[:70]!r} has characters or a length "
                "that no DNS label has"
            )
    return text


@dataclass(frozen=True, slots=True)
class AgentName:
    """`hostname` and `domain` as an agent registers them, both normalized."""

    hostname: str
    domain: str

    @classmethod
    def parse(cls, hostname: str, domain: str) -> AgentName:
        """Raises `ValueError` when either part, or both together, cannot be a name."""
        parsed = cls(normalize(hostname), normalize(domain))
        normalize(parsed.full)
        return parsed

    @property
    def full(self) -> str:
        return f"{self.hostname}.{self.domain}"

    def __str__(self) -> str:
        return self.full


@dataclass(frozen=True, slots=True)
class Target:
    """What a caller asks for: a name (of an instance or of a domain) and a port."""

    name: str
    port: int

    @classmethod
    def parse(cls, host: str, port: int | str) -> Target:
        """Raises `ValueError` when `host` cannot be a name or `port` no TCP port.

        As asyncio does, it takes a port in digits, too.
        """
        name = normalize(host)
        if isinstance(port, str) and port.isascii() and port.isdigit():
            port = int(port)
        if not isinstance(port, int) or not 1 <= port <= 65535:
            raise ValueError(f"{name}: {port!r} is not a port (1 to 65535)")
        return cls(name, port)

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"


def host_port(host: str, port: int) -> str:
    """Both as they are written: an IPv6 address has brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def check_port(port: int) -> int:
    """Give `port` back if it is one (1 to 65535), else raise `ValueError`."""
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is not a port (1 to 65535)")
    return port


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """A bounded copy of an agent's labels; raises `ValueError` past the bounds."""
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{len(labels)} labels, at most {MAX_LABELS} are kept")
    for key, value in labels.items():
        if not key or len(key) > MAX_LABEL_LENGTH or len(value) > MAX_LABEL_LENGTH:
            raise ValueError(
                f"label {key[:40]!r}: key and value take at most {MAX_LABEL_LENGTH} characters"
            )
        if not (key + value).isprintable():
            raise ValueError(f"label {key[:40]!r} has characters that cannot be printed")
    return dict(labels)


def printable(text: str, limit: int) -> str:
    """A peer's text as it may stand in a log line: one line, no control characters, bounded."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= limit else shown[:limit] + "…"


def is_within(name: str, domains: Iterable[str]) -> bool:
    """Whether a normalized `name` is one of `domains` or lies in one."""
    return any(name == domain or name.endswith("." + domain) for domain in domains)


def close_matches(name: str, known: Iterable[str]) -> list[str]:
    """At most three known names that look like `name`, the closest first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
