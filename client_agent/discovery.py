"""The addresses behind an endpoint, followed for as long as the agent runs.

Who is asked for the addresses of a name, the first that has a say:

1. the hosts file, as users expect; for localhost that or loopback, never DNS (RFC 6761 §6.3);
2. DNS, for a name with a dot: A and AAAA, taken as it is written, with no search domain;
3. the system's resolver (single labels, search domains, mDNS and the like), for a name
   that DNS has never answered.

An answer is asked for again when its smallest TTL has run out. What was known stays until
there is an answer that says otherwise: a name that does not exist, no answer, an answer
without an address are not a reason to leave a broker that works.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
from dns.rdatatype import RdataType
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from client_agent.backoff import Backoff
from client_agent.endpoints import Address, Endpoint

logger = logging.getLogger(__name__)

MIN_TTL = 1.0
"""Seconds: a TTL of 0 means "do not cache", not "ask without a pause"."""
MAX_TTL = 300.0
"""Seconds: a record with a TTL of days that is changed after all is seen in five minutes."""
LOCAL_TTL = 30.0
"""Seconds after which the hosts file and the system's resolver, which know no TTL, are
asked again: as good as a usual TTL, and too rare to be felt."""
LOOKUP_TIMEOUT = 5.0
"""Seconds for one question to DNS, over all its servers and tries; the same as in libc."""
FAMILY_GRACE = 1.0
"""Seconds that the slower of A and AAAA gets after the other has brought addresses: there
are servers that never answer AAAA, and their users should not wait for that each time."""
RETRY_BOUND = 5.0
"""Seconds, at most, between two tries while nothing is answered: brokers that appear then
are joined about as soon as those that appear behind a name that works."""
LOOKUPS_AT_ONCE = 16
"""Targets of a service that are looked up at a time; a bound for the open sockets."""

ADDRESS_TYPES = (RdataType.A, RdataType.AAAA)
LOOPBACK = frozenset({"127.0.0.1", "::1"})


async def ask_system(host: str) -> frozenset[str]:
    """The literal IPs that the system's resolver has for `host`; raises `OSError` if none.

    Cancellation is immediate. libc cannot be stopped, so its thread goes on until libc
    gives up; it is a daemon thread of its own because an executor's, which
    `loop.getaddrinfo` would use, holds up the end of the process for as long (10 s and
    more when no DNS server answers).
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[frozenset[str]] = loop.create_future()

    def settle(result: frozenset[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(result, OSError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def ask() -> None:
        result: frozenset[str] | OSError
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            result = frozenset(str(sockaddr[0]) for *_, sockaddr in found)
        except UnicodeError as error:
            result = OSError(str(error))
        except OSError as error:
            result = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return await answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolvers:
    """Who is asked. The default is this machine's configuration, read anew for each lookup.

    `nameservers` are literal IPs that stand in for those of `resolv_conf`; all are asked on
    `nameserver_port`. `timeout` is in seconds, for one question to DNS.
    """

    nameservers: Sequence[str] | None = None
    nameserver_port: int = 53
    resolv_conf: Path = Path("/etc/resolv.conf")
    hosts_file: Path = Path("/etc/hosts")
    ask_system: Callable[[str], Awaitable[frozenset[str]]] = ask_system
    timeout: float = LOOKUP_TIMEOUT

    def dns_resolver(self) -> dns.asyncresolver.Resolver | None:
        """A resolver for one lookup, or None if this machine names no DNS server."""
        try:
            resolver = dns.asyncresolver.Resolver(
                filename=str(self.resolv_conf), configure=self.nameservers is None
            )
        except (dns.exception.DNSException, OSError, ValueError):
            # A container may have no such file, or one that is being written just now.
            return None
        if self.nameservers is not None:
            resolver.nameservers = list(self.nameservers)
        resolver.port = self.nameserver_port
        resolver.lifetime = self.timeout
        return resolver

    def listed(self, host: str) -> frozenset[str]:
        """The literal IPs that the hosts file has for `host`; none if it cannot be read."""
        try:
            text = self.hosts_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return frozenset()
        found = set()
        for line in text.splitlines():
            ip, *names = line.partition("#")[0].split() or [""]
            if host in (name.lower().removesuffix(".") for name in names):
                with suppress(ValueError):
                    found.add(str(ipaddress.ip_address(ip)))
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one round of questions came to.

    `ttl`: seconds until what was answered is to be asked for again, None if nothing was.
    `failures`: why, for each question that got no usable answer.
    """

    ttl: float | None
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Answer:
    """The records of one question (none: the name exists without them); `ttl` in seconds."""

    records: frozenset[A | AAAA | SRV]
    ttl: float


class Discovery:
    """Follows one endpoint. `sleep` is called with seconds and waits as long.

    A `quiet` one logs nothing, for an owner who tells of `trouble` itself.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        resolvers: Resolvers | None = None,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        quiet: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._quiet = quiet
        self._trouble = ""
        self._sleep = sleep
        self._failing: frozenset[str] = frozenset()
        resolvers = resolvers or Resolvers()
        self._source: _Host | _Service | None = None
        if endpoint.srv:
            self._source = _Service(endpoint.host, resolvers)
        elif not endpoint.is_literal:
            self._source = _Host(endpoint.host, endpoint.port, resolvers)

    @property
    def trouble(self) -> str:
        """Why the last look found nothing, or not all of it; empty if it did."""
        return self._trouble

    async def watch(self) -> AsyncGenerator[frozenset[Address], None]:
        """The endpoint's addresses each time that they have changed, for ever; never none.

        Ends only by cancellation or `aclose`, and leaves nothing behind then (but see
        `ask_system`). A resolver's failure is logged when it begins and when it is over,
        and is otherwise not seen. Literal addresses come once.
        """
        if self._source is None:
            yield frozenset({Address(self.endpoint.host, self.endpoint.port)})
            await asyncio.get_running_loop().create_future()
            return
        told: frozenset[Address] = frozenset()
        nothing, something = Backoff(maximum=RETRY_BOUND), Backoff()
        while True:
            outcome = await self._source.refresh()
            found = self._source.addresses
            self._trouble = "; ".join(dict.fromkeys(outcome.failures.values()))
            if not self._quiet:
                self._log(outcome, len(found))
            if found and found != told:
                told = found
                yield found
            if outcome.ttl is None or not found:
                delay = nothing.next_delay()
            else:
                nothing.reset()
                delay = min(max(outcome.ttl, MIN_TTL), MAX_TTL)
                if outcome.failures:
                    delay = min(delay, something.next_delay())
                else:
                    something.reset()
            await self._sleep(delay)

    def _log(self, outcome: _Outcome, kept: int) -> None:
        """One line when what fails is not what failed before; the reasons may vary."""
        failing = frozenset(outcome.failures)
        if failing and failing != self._failing:
            logger.warning(
                "looking up %s: %s; %s",
                self.endpoint,
                self._trouble,
                f"continuing with {kept} known" if kept else "trying again",
            )
        elif self._failing and not failing:
            logger.info("looking up %s works again: %d found", self.endpoint, kept)
        self._failing = failing

    def __repr__(self) -> str:
        state = f" failing: {', '.join(sorted(self._failing))}" if self._failing else ""
        return f"<Discovery {self.endpoint}{state}>"


class _Host:
    """The addresses behind one host name, as they were answered last."""

    def __init__(self, host: str, port: int, resolvers: Resolvers) -> None:
        self._host = host
        self._port = port
        self._resolvers = resolvers
        self._by_type: dict[RdataType, frozenset[str]] = {}
        """What DNS said; empty as long as it never gave an address."""
        self._ips: frozenset[str] = frozenset()

    @property
    def addresses(self) -> frozenset[Address]:
        return frozenset(Address(ip, self._port) for ip in self._ips)

    async def refresh(self) -> _Outcome:
        local = self._resolvers.listed(self._host)
        if not local and self._host.rpartition(".")[2] == "localhost":
            local = LOOPBACK
        if local:
            self._ips = local
            return _Outcome(LOCAL_TTL)
        resolver = self._resolvers.dns_resolver() if "." in self._host else None
        if resolver is None:
            return await self._refresh_from_system({})
        outcome = await self._refresh_from_dns(resolver)
        if outcome.ttl is None and not self._by_type:
            return await self._refresh_from_system(outcome.failures)
        return outcome

    async def _refresh_from_system(self, failures: Mapping[str, str]) -> _Outcome:
        """`failures` are those of DNS, which are worth telling only if this fails too."""
        try:
            ips = await self._resolvers.ask_system(self._host)
        except OSError as error:
            return _Outcome(
                None, failures or {self._host: f"{self._host}: {error.strerror or error}"}
            )
        self._ips = ips or self._ips
        return _Outcome(LOCAL_TTL)

    async def _refresh_from_dns(self, resolver: dns.asyncresolver.Resolver) -> _Outcome:
        answers = await self._ask_for_addresses(resolver)
        ips = {
            rdtype: frozenset(
                record.address for record in answer.records if not isinstance(record, SRV)
            )
            for rdtype, answer in answers.items()
            if isinstance(answer, _Answer)
        }
        failures = {
            f"{self._host} {rdtype.name}": answer
            for rdtype, answer in answers.items()
            if isinstance(answer, str)
        }
        if not any(ips.values()):
            return _Outcome(None, failures or {self._host: f"{self._host} has no address in DNS"})
        self._by_type.update(ips)
        self._ips = frozenset().union(*self._by_type.values())
        ttl = min(answer.ttl for answer in answers.values() if isinstance(answer, _Answer))
        return _Outcome(ttl, failures)

    async def _ask_for_addresses(
        self, resolver: dns.asyncresolver.Resolver
    ) -> dict[RdataType, _Answer | str]:
        """Ask for A and AAAA side by side; for each the answer, or why there is none."""
        async with asyncio.TaskGroup() as group:
            tasks = {
                rdtype: group.create_task(
                    _ask(resolver, self._host, rdtype), name=f"{rdtype.name} of {self._host}"
                )
                for rdtype in ADDRESS_TYPES
            }
            done, late = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            first = done.pop().result()
            if late and isinstance(first, _Answer) and first.records:
                _, late = await asyncio.wait(late, timeout=FAMILY_GRACE)
                for task in late:
                    task.cancel()
        return {
            rdtype: f"{self._host} {rdtype.name}: no answer yet"
            if task.cancelled()
            else task.result()
            for rdtype, task in tasks.items()
        }


class _Service:
    """The addresses of all targets of a service. Priorities and weights do not matter:
    every broker gets a control stream.
    """

    def __init__(self, name: str, resolvers: Resolvers) -> None:
        self._name = name
        self._resolvers = resolvers
        self._targets: dict[tuple[str, int], _Host] = {}
        self._turn = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    @property
    def addresses(self) -> frozenset[Address]:
        return frozenset().union(*(target.addresses for target in self._targets.values()))

    async def refresh(self) -> _Outcome:
        outcomes = [await self._refresh_targets()]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._refresh_target(target), name=f"addresses of {host}")
                for (host, _), target in self._targets.items()
            ]
        outcomes += [task.result() for task in tasks]
        ttls = [outcome.ttl for outcome in outcomes if outcome.ttl is not None]
        failures = {key: why for outcome in outcomes for key, why in outcome.failures.items()}
        return _Outcome(min(ttls, default=None), failures)

    async def _refresh_target(self, target: _Host) -> _Outcome:
        async with self._turn:
            return await target.refresh()

    async def _refresh_targets(self) -> _Outcome:
        resolver = self._resolvers.dns_resolver()
        if resolver is None:
            conf = self._resolvers.resolv_conf
            return self._unanswered(f"{self._name} needs DNS, and {conf} names no server")
        answer = await _ask(resolver, self._name, RdataType.SRV)
        if isinstance(answer, str):
            return self._unanswered(answer)
        targets = {
            (record.target.to_text(omit_final_dot=True).lower(), record.port)
            for record in answer.records
            # A target of "." means: decidedly not available here (RFC 2782).
            if isinstance(record, SRV) and record.target != dns.name.root
        }
        if not targets:
            return self._unanswered(f"{self._name} has no targets in DNS")
        self._targets = {
            target: self._targets.get(target) or _Host(*target, self._resolvers)
            for target in sorted(targets)
        }
        return _Outcome(answer.ttl)

    def _unanswered(self, why: str) -> _Outcome:
        return _Outcome(None, {f"{self._name} SRV": why})


async def _ask(resolver: dns.asyncresolver.Resolver, name: str, rdtype: RdataType) -> _Answer | str:
    """One question to DNS, CNAMEs followed: its answer, or why there is none."""
    try:
        answer = await resolver.resolve(dns.name.from_text(name), rdtype, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return f"DNS knows no {name}"
    except dns.resolver.LifetimeTimeout:
        return f"{name} {rdtype.name}: no answer from DNS in {resolver.lifetime:g} s"
    except (dns.exception.DNSException, OSError) as error:
        return f"{name} {rdtype.name}: {error}"
    records = frozenset(r for r in answer.rrset or () if isinstance(r, A | AAAA | SRV))
    return _Answer(records, float(answer.chaining_result.minimum_ttl))
