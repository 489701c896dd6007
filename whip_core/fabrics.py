"""The fabrics that ship, as a plugin: NATS."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from whip_core.errors import SettingsError
from whip_core.fabric import Fabric
from whip_core.hookspecs import hookimpl
from whip_core.settings import FabricSettings, is_loopback

SCHEMES = ("nats", "tls")


class ShippedFabrics:
    """Knows `nats://` and `tls://`."""

    whip_name = "fabrics"

    @hookimpl(trylast=True)
    def whip_fabric(self, settings: FabricSettings) -> Fabric | None:
        servers = [text.strip() for text in settings.url.split(",")]
        if not all(urlsplit(server).scheme in SCHEMES for server in servers):
            return None
        try:
            from whip_core.fabric_nats import NatsFabric
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"--fabric over NATS needs {error.name}: pip install 'whip-tunnel[nats]'"
            ) from error
        context = _context(settings)
        for server in servers:
            _check(server, context is not None)
        credentials = str(settings.credentials) if settings.credentials else None
        return NatsFabric(servers, settings.cluster, tls=context, credentials=credentials)


def _check(server: str, has_tls: bool) -> None:
    host = urlsplit(server).hostname
    if not host:
        raise SettingsError(f"--fabric {server!r} has no host; write nats://host:4222")
    if not has_tls and not is_loopback(host):
        raise SettingsError(
            f"--fabric {server}: over the network NATS requires TLS; give --fabric-tls-ca-cert-path"
        )


def _context(settings: FabricSettings) -> ssl.SSLContext | None:
    """For NATS's own servers: their names are checked, unlike those of our peers."""
    if settings.ca is None:
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(settings.ca)
        if settings.cert is not None:
            context.load_cert_chain(settings.cert, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"cannot use the fabric's TLS files: {error}") from error
    return context
