"""The rules of who may register, and who may reach what, as plugins.

Plugins of others are asked besides, and any of them can say no.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime

from whip_core.agents import AgentView, Peer, Registration
from whip_core.caller import Caller
from whip_core.hookspecs import hookimpl
from whip_core.host_patterns import covers, covers_agent
from whip_core.names import Target
from whip_core.policy import Decision, Policy

logger = logging.getLogger(__name__)


class CertificateCoversName:
    """Over TLS an agent registers only names its certificate is for; in plaintext, any.

    A wildcard is for one domain. A full name may be split into hostname and domain at any dot.
    """

    whip_name = "certificate"

    @hookimpl
    def whip_authorize_agent(self, registration: Registration, peer: Peer) -> str | None:
        names = peer.certificate_names
        name = registration.name
        if names is None or covers_agent(names, name):
            return None
        shown = ", ".join(names) or "no name at all"
        domain = f" in the domain {name.domain}" if covers(names, name.full) else ""
        return f"its certificate is for {shown}, which does not cover {name.full}{domain}"


class PolicyRules:
    """A policy; each of its decisions is a line of JSON in the log `whip_core.authorization`."""

    whip_name = "policy"

    def __init__(
        self,
        policy: Policy,
        now: Callable[[], datetime] = datetime.now,  # local: hours are the operator's
    ) -> None:
        self._policy = policy
        self._now = now

    @hookimpl
    def whip_authorize_dial(self, target: Target, agent: AgentView, caller: Caller) -> str | None:
        decision = self._policy.of_dial(target, agent, caller, self._now())
        return self._say(
            decision,
            decision.against(f"{_told(caller)} reach {agent.name} for {target}"),
            kind="dial",
            user=caller.proxy_user,
            certificate_names=caller.certificate_names,
            source=caller.address[0] if caller.address else None,
            target=str(target),
            agent=str(agent.name),
            request_id=caller.request_id,
        )

    @hookimpl
    def whip_authorize_agent(self, registration: Registration, peer: Peer) -> str | None:
        if self._policy.agents is None:
            return None
        decision = self._policy.of_agent(registration, peer, self._now())
        return self._say(
            decision,
            decision.against(f"it register from {peer.address[0]}"),
            kind="registration",
            certificate_names=peer.certificate_names,
            source=peer.address[0],
            agent=str(registration.name),
            ports=registration.ports,
            labels=dict(registration.labels),
        )

    def _say(self, decision: Decision, reason: str, **known: object) -> str | None:
        """Log the decision; the reason, if it is a no that counts."""
        level = logging.INFO if decision.allowed else logging.WARNING
        line = {
            "policy": "allow" if decision.allowed else "deny",
            "rule": decision.rule,
            **({"dry_run": True} if self._policy.dry_run else {}),
            **known,
        }
        logger.log(level, "%s", json.dumps(line))
        return None if decision.allowed or self._policy.dry_run else reason


def _told(caller: Caller) -> str:
    if caller.proxy_user is not None:
        return f"user {caller.proxy_user}"
    if caller.certificate_names:
        return caller.certificate_names[0]
    return caller.address[0] if caller.address else "this process"
