"""The rule of who may register a name, as a plugin: the certificate has to cover it."""

from __future__ import annotations

from whip_core.agents import Peer, Registration
from whip_core.certificates import covers
from whip_core.hookspecs import hookimpl


class CertificateCoversName:
    """Over TLS an agent registers only names its certificate is for; in plaintext, any."""

    whip_name = "certificate"

    @hookimpl
    def whip_authorize_agent(self, registration: Registration, peer: Peer) -> str | None:
        names = peer.certificate_names
        if names is None or covers(names, registration.name.full):
            return None
        shown = ", ".join(names) or "no name at all"
        return f"its certificate is for {shown}, which does not cover {registration.name.full}"
