"""Who may reach what, and which agents may register: rules, and what they come to.

The first rule that fits decides; where none fits, the answer is no. A rule fits if all of
its conditions do, and a condition that lists several things if one of them does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, time
from fnmatch import fnmatchcase

from whip_core.agents import AgentView, Peer, Registration
from whip_core.caller import Caller
from whip_core.candidates import exposed_port
from whip_core.names import AgentName, Target

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks, for which agent, and when. A caller has a user; an agent that registers none."""

    user: str | None
    certificate_names: tuple[str, ...]
    source: str | None
    """The address that it comes from."""
    agent: AgentName
    labels: Mapping[str, str]
    ports: tuple[int, ...]
    """All of them have to be in a rule."""
    now: datetime


@dataclass(frozen=True, slots=True)
class Hours:
    """From `start` until before `end`; past midnight if `end` is not later."""

    start: time
    end: time

    def __contains__(self, now: time) -> bool:
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A condition of None is one that the rule does not have."""

    name: str
    allows: bool = True
    users: tuple[str, ...] | None = None
    certificates: tuple[str, ...] | None = None
    networks: tuple[Network, ...] | None = None
    names: tuple[str, ...] | None = None
    labels: Mapping[str, str] | None = None
    ports: tuple[range, ...] | None = None
    hours: tuple[Hours, ...] | None = None
    days: frozenset[int] | None = None
    """Of the week, Monday is 0. A night belongs to the day that it is by the clock."""

    def fits(self, subject: Subject) -> bool:
        return all(condition(self, subject) for condition in _CONDITIONS)


def _user(rule: Rule, subject: Subject) -> bool:
    return rule.users is None or (subject.user is not None and _matches(subject.user, rule.users))


def _certificate(rule: Rule, subject: Subject) -> bool:
    return rule.certificates is None or any(
        _matches(name.lower(), rule.certificates) for name in subject.certificate_names
    )


def _network(rule: Rule, subject: Subject) -> bool:
    if rule.networks is None:
        return True
    address = _address(subject.source)
    return address is not None and any(address in network for network in rule.networks)


def _name(rule: Rule, subject: Subject) -> bool:
    return (
        rule.names is None
        or subject.agent.domain in rule.names
        or _matches(subject.agent.full, rule.names)
    )


def _labels(rule: Rule, subject: Subject) -> bool:
    return rule.labels is None or all(
        key in subject.labels and fnmatchcase(subject.labels[key], pattern)
        for key, pattern in rule.labels.items()
    )


def _ports(rule: Rule, subject: Subject) -> bool:
    if rule.ports is None:
        return True
    return all(any(port in span for span in rule.ports) for port in subject.ports)


def _time(rule: Rule, subject: Subject) -> bool:
    now = subject.now
    return (rule.hours is None or any(now.time() in hours for hours in rule.hours)) and (
        rule.days is None or now.weekday() in rule.days
    )


_CONDITIONS: tuple[Callable[[Rule, Subject], bool], ...] = (
    *(_user, _certificate, _network),
    *(_name, _labels, _ports, _time),
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says; `rule` is None where none fits."""

    allowed: bool
    rule: str | None

    def against(self, what: str) -> str:
        """The reason of a no."""
        if self.rule is None:
            return f"no rule of the policy lets {what}"
        return f"the policy's rule {self.rule!r} does not let {what}"


@dataclass(frozen=True, slots=True)
class Policy:
    """`agents` of None: it has nothing to say about which agents register."""

    callers: tuple[Rule, ...]
    agents: tuple[Rule, ...] | None = None
    dry_run: bool = False
    """Whether a no is only logged."""

    def of_dial(self, target: Target, agent: AgentView, caller: Caller, now: datetime) -> Decision:
        """Whether `caller` may reach `agent` at the port that the dial would come to there.

        That, not the one that was asked for: 80 may be an agent's only port, whichever.
        """
        port = exposed_port(agent.ports, target.port)
        subject = Subject(
            user=caller.proxy_user,
            certificate_names=caller.certificate_names,
            source=caller.address[0] if caller.address else None,
            agent=agent.name,
            labels=agent.labels,
            ports=(target.port if port is None else port,),
            now=now,
        )
        return _decide(self.callers, subject)

    def of_agent(self, registration: Registration, peer: Peer, now: datetime) -> Decision:
        """Whether the agent may register."""
        if self.agents is None:
            return Decision(True, None)
        subject = Subject(
            user=None,
            certificate_names=peer.certificate_names or (),
            source=peer.address[0],
            agent=registration.name,
            labels=registration.labels,
            ports=registration.ports,
            now=now,
        )
        return _decide(self.agents, subject)


def _decide(rules: Iterable[Rule], subject: Subject) -> Decision:
    for rule in rules:
        if rule.fits(subject):
            return Decision(rule.allows, rule.name)
    return Decision(False, None)


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    # What an IPv4 peer looks like to a listener for both families.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
