"""Who asks for a dial: what authorization and pickers may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is known of the HTTP request a dial is made for. Header names are lower case."""

    method: str
    scheme: str
    host: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """Every part may be missing: a Python program that dials has none of them."""

    address: tuple[str, int] | None = None
    """Where the proxy's client connects from (host, port)."""
    proxy_user: str | None = None
    certificate_names: tuple[str, ...] = ()
    """DNS names of the certificate the client showed, if it showed one."""
    request: HttpRequest | None = None
    request_id: str | None = None
    """The id a load balancer in front gave the request, carried into our logs."""
    dialled_by: tuple[str, ...] = ()
    """DNS names of the certificate of the program that dialled, if it did so over a broker's
    dial socket in TCP: proved to the broker, where all else may be that program's word."""


NOBODY = Caller()
"""A dial from the process itself."""
